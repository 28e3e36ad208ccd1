"""Who set which key: the command line, else the recipe, else the checkpoint's defaults.yaml, else the group."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runner.config.faults import Fault, Refused
from runner.config.recipes import folder as shipped
from runner.config.recipes import groups, parse, read, recipes

DEFAULTS = "defaults.yaml"
MISSING = "???"  # OmegaConf's mark of a value that must be given
# The key that names a group's member: choosing a member by name is setting this key, and the other keys of the member
# stay what they are, defaults.
NAMING = {"model": "model.name", "quant": "quant.scheme", "cache": "cache.policy", "hardware": "hardware.device"}
# What a checkpoint knows about itself. Where and on what it runs is not for it to say.
CHECKPOINT_SECTIONS = ("seed", "prompts", "model", "sampler", "quant", "cache", "dump", "sample", "timing")
# A checkpoint's value of these does not hold where the others are set on purpose: both say how large a clip is.
IN_PLACE_OF = dict.fromkeys(("model.height", "model.width"), ("model.resolution", "model.aspect_ratio"))
NOT_CHECKPOINTS = ("model.name", "model.checkpoint", "model.revision", "model.cache_dir")


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(full key, value) of everything in a nested mapping; an empty mapping is a value."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


@dataclass(frozen=True)
class Explicit:
    """What was set on purpose."""

    by: dict[str, str]  # full key: "command line" or "recipe"; a key speaks for all below it
    demanded: tuple[str, ...] = ()  # what the recipe wants to be given
    settled: Mapping[str, str] | None = None  # of a run that is made again: who set each key; no checkpoint does now

    def __contains__(self, key: str) -> bool:
        return self.setter(key) is not None

    def setter(self, key: str) -> str | None:
        """Who set `key` or something above it, None if nobody did."""
        while key:
            if key in self.by:
                return self.by[key]
            key = key.rpartition(".")[0]
        return None


def explicit(overrides: Sequence[str]) -> Explicit:
    """What Hydra's `overrides`, and the recipes that they choose, set on purpose."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    typed: list[str] = []
    chosen: list[str] = []
    members = groups()
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        name = override.key_or_group
        if name == "recipe":
            value = override.value()
            chosen += [str(v) for v in value] if isinstance(value, list) else [str(value)]
        elif name in members:
            typed += [NAMING[name]] if name in NAMING else []
        else:
            typed.append(name)
    by_recipe = dict(_recipe_keys(chosen))
    found = Explicit(dict.fromkeys(by_recipe, "recipe") | dict.fromkeys(typed, "command line"))
    # OmegaConf lets a value stand when ??? is merged over it: what is demanded does not show in the composed config.
    demanded = (key for key, value in by_recipe.items() if value == MISSING and found.setter(key) == "recipe")
    return replace(found, demanded=tuple(demanded))


def checkpoint_defaults(folder: Path) -> dict[str, Any]:
    """What the checkpoint in `folder` wants, by full key ({} without a defaults.yaml); paths in it become absolute.

    Raises Refused if the file cannot be read, or sets what is not a checkpoint's to set.
    """
    import yaml

    path = folder / DEFAULTS
    if not path.is_file():
        return {}
    try:
        tree = parse(path.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise Refused([Fault("model.checkpoint", f"{path} cannot be read: {error}")]) from error
    if not isinstance(tree, dict):
        raise Refused([Fault("model.checkpoint", f"{path} holds no keys")])
    wanted = dict(leaves(tree))
    strangers = [key for key in wanted if key.split(".")[0] not in CHECKPOINT_SECTIONS or key in NOT_CHECKPOINTS]
    if strangers:
        raise Refused(Fault(key, f"not for a checkpoint to set, but {path} does") for key in strangers)
    for key in ("prompts.text", "prompts.calibration", "model.vae", "model.text_encoder"):
        value = wanted.get(key)
        if isinstance(value, str) and (folder / value).exists():
            wanted[key] = str((folder / value).resolve())
    return wanted


def defaults() -> dict[str, Any]:
    """The value of each key without a recipe: config.yaml and the members that its defaults list names."""

    def read_yaml(path: Path) -> dict[str, Any]:
        return parse(path.read_text(encoding="utf-8")) or {}

    conf = shipped("conf")
    root = read_yaml(conf / "config.yaml")
    found = dict(leaves({key: value for key, value in root.items() if key not in ("defaults", "hydra")}))
    for entry in root["defaults"]:
        if isinstance(entry, Mapping) and not next(iter(entry)).startswith("override"):
            group, member = next(iter(entry.items()))
            path = conf / group / f"{member}.yaml"
            everywhere = "@package _global_" in path.read_text(encoding="utf-8").splitlines()[0]
            tree = read_yaml(path)
            found |= leaves(tree if everywhere else {group: tree})
    # Keys that other models alone have, by their own members.
    for path in sorted((conf / "model").glob("*.yaml")):
        others = leaves({"model": read_yaml(path).get("model", {})})
        found |= {key: value for key, value in others if key not in found}
    return found


def _recipe_keys(names: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """(key, value) of what recipes set, those that they build on first; a member that they choose is its naming key."""
    known = recipes()
    for name in names:
        if name not in known:
            continue  # Hydra has refused it already
        content = read(known[name])
        for entry in content.get("defaults", []):
            if isinstance(entry, str) and entry != "_self_":
                yield from _recipe_keys([entry.rpartition("/")[2]])
            elif isinstance(entry, Mapping):
                for group, member in entry.items():
                    key = NAMING.get(str(group).removeprefix("override ").strip().lstrip("/"))
                    yield from [(key, member)] if key else []
        yield "name", name
        yield from leaves({key: value for key, value in content.items() if key != "defaults"})
