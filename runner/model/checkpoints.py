"""Which weights a run uses: the embedded little world, a folder, or a hub id; and where their parts lie."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from runner.config.faults import Fault
from runner.config.recipes import PACKAGE
from runner.model import rules_of
from runner.model.object_file import read
from runner.model.rules import Rules

EMBEDDED = "embedded"
EMBEDDED_FOLDER = PACKAGE / "embedded" / "weights"  # with a folder for each model
PARTS = ("vae", "text_encoder", "vae2d", "vae3d")  # beside the transformer, of any architecture
WEIGHT_FILES = (".json", ".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".model", ".txt")


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a run. `path` is an absolute folder, or a hub id, which nothing here can look into."""

    path: str
    label: str
    embedded: bool = False

    @property
    def folder(self) -> Path | None:
        """The folder, None for a hub id."""
        return Path(self.path) if os.path.isabs(self.path) else None


def locate(name: str, revision: str | None, architecture: str | None = None) -> Checkpoint:
    """What model.checkpoint means. A hub id needs a revision; anything else is a folder, there or not.

    Of an architecture that must look into its checkpoint, a hub id is its folder in the hub's cache on this machine."""
    if name == EMBEDDED:
        return Checkpoint(
            str(EMBEDDED_FOLDER / (architecture or "osp12")),
            "embedded little world (trained weights that ship with the project)",
            embedded=True,
        )
    folder = Path(name).expanduser()
    if revision is not None and not folder.exists():
        rules = _rules(architecture)
        return Checkpoint(
            str(rules and rules.snapshot(name, revision) or name), f"{name} at revision {revision} of the hub"
        )
    return Checkpoint(os.path.abspath(folder), f"checkpoint {os.path.abspath(folder)}")


def faults(checkpoint: Checkpoint, architecture: str) -> list[Fault]:
    """Why the weights cannot be used, as far as names of files and config.json tell."""
    key, folder = "model.checkpoint", checkpoint.folder
    rules = _rules(architecture)
    if folder is None and rules is not None and not rules.FROM_HUB:
        return [Fault(key, "the hub's cache on this machine has no such revision of it: hf download it first")]
    if folder is None:
        return []
    if checkpoint.embedded and not folder.is_dir():
        return [Fault(key, f"this installation lacks its weights, {folder}", EMBEDDED)]
    if not folder.is_dir():
        return [Fault(key, f"there is no folder {folder} (a hub id needs model.revision, too)")]
    return [Fault(key, sentence) for sentence in rules_of({"name": architecture}).checkpoint_faults(folder)]


def _rules(architecture: str | None) -> Rules | None:
    """The rules of an architecture, None where it has no name that could be one's."""
    return rules_of({"name": architecture}) if architecture is not None and architecture.isidentifier() else None


def shapes_of(model: Mapping[str, Any], folder: Path) -> Any:
    """How large what a resolved model section computes is (runner.model.shapes); `folder` is the checkpoint's."""
    return import_module(f"runner.model.{model['name']}.shapes").shapes(model, folder)


def blocks(model: Mapping[str, Any]) -> int | None:
    """How many blocks the transformer of a model section has, some more at the most; None where no file on this machine
    tells."""
    try:
        return int(rules_of(model).blocks(model)) or None
    except (OSError, ValueError, TypeError):
        return None


def heads(model: Mapping[str, Any]) -> int | None:
    """How many heads its attention has; None where no config.json on this machine tells."""
    rules = rules_of(model)
    try:
        found = read(Path(model["checkpoint"]) / rules.TRANSFORMER / "config.json").get(rules.HEADS)
    except ValueError:
        return None
    return found if isinstance(found, int) else None


def components(model: Mapping[str, Any], checkpoint: Checkpoint) -> tuple[dict[str, str], list[Fault]]:
    """Where the parts beside the transformer are, absolute folders or hub ids, and what is missing of them."""
    rules = rules_of(model)
    places = rules.components(model, checkpoint.folder)
    found: dict[str, str] = {}
    faults: list[Fault] = []
    for part in dict.fromkeys([*rules.PARTS, *places]):
        place, named = places.get(part), model.get(part) is not None
        if place is None and checkpoint.folder is not None:
            faults.append(
                Fault(f"model.{part}", f"neither in {checkpoint.path} nor beside it is a folder {part}: give one")
            )
        elif place is not None and os.path.isdir(os.path.expanduser(place)):
            found[part] = os.path.abspath(os.path.expanduser(place))
            if not os.path.isfile(os.path.join(found[part], "config.json")):
                faults.append(Fault(f"model.{part}", f"{found[part]} has no config.json"))
        elif place is not None and named and (os.path.isabs(os.path.expanduser(place)) or place.startswith(".")):
            faults.append(Fault(f"model.{part}", "there is no such folder", place))
        elif place is not None:
            found[part] = place
    return found, faults


def weight_files(config: Mapping[str, Any]) -> dict[str, Path | str]:
    """The weights of a resolved configuration: each file of each part, by a name that says nothing of places.

    A hub id, with its revision, stands for itself.
    """
    model = config["model"]
    found: dict[str, Path | str] = {}
    for part, place in rules_of(model).parts(model).items():
        if place is None or not os.path.isabs(place):
            found[part] = f"{place}@{model['revision']}"
            continue
        for file in [Path(place)] if os.path.isfile(place) else sorted(Path(place).iterdir()):
            if file.suffix in WEIGHT_FILES and file.is_file():
                found[f"{part}/{file.name}"] = file
    return found


def shipped(references: Any, model: Mapping[str, Any]) -> Any:
    """References, a text or a list of texts, with the place of each embedded/NAME, which ships with small weights."""
    if isinstance(references, list):
        return [shipped(each, model) for each in references]
    if not isinstance(references, str):
        return references
    folder = locate(EMBEDDED, None, model["name"]).path
    parts = (part.strip() for part in references.split(";"))
    return ";".join(
        f"{folder}/{part[len(EMBEDDED) + 1 :]}" if part.startswith(f"{EMBEDDED}/") else part for part in parts
    )


def reference_files(config: Mapping[str, Any]) -> list[Path]:
    """The images and videos that the prompts of a resolved configuration name, if its model takes any."""
    rules, prompts = rules_of(config["model"]), config["prompts"]
    texts = [text for name in ("text", "calibration", "verification") for text in prompts.get(name) or ()]
    return list(dict.fromkeys(rules.files(texts)))
