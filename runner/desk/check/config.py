"""From what Hydra composed to one checked, resolved configuration: every fault at once, before torch is imported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runner.config.faults import Fault, Refused, nearest, nearest_key, spell
from runner.config.precedence import DEFAULTS, IN_PLACE_OF, MISSING, Explicit, checkpoint_defaults, leaves
from runner.config.schema import AVAILABLE, SECTIONS, Config, architectures, keys
from runner.desk.check.rules import between
from runner.hardware.compute import Compute, decide
from runner.model import checkpoints, rules_of
from runner.model.checkpoints import Checkpoint

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from pydantic_core import ErrorDetails


MACHINE = "machine"  # who set a key that was left to what this machine is


@dataclass(frozen=True)
class Checked:
    """A configuration that may run (resolved, paths absolute, prompts as lists), who set each key, and the weights."""

    config: dict[str, Any]
    origin: dict[str, str]
    checkpoint: Checkpoint
    compute: Compute  # what is computed in, and why


def check(composed: DictConfig, explicitly: Explicit) -> Checked:
    """The checked form of what Hydra composed. Raises Refused with all faults, by their full keys."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    checkpoint = _checkpoint(composed)
    wanted = _of_checkpoint(composed, checkpoint) if explicitly.settled is None else {}
    taken = {
        key: value
        for key, value in wanted.items()
        if not any(said in explicitly for said in (key, *IN_PLACE_OF.get(key, ())))
    }
    merged = OmegaConf.create(OmegaConf.to_container(composed))
    for key, value in taken.items():
        OmegaConf.update(merged, key, value, merge=False)
    try:
        config: dict[str, Any] = OmegaConf.to_container(merged, resolve=True)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise Refused(
            [Fault(getattr(error, "full_key", None) or "configuration", str(error).splitlines()[0])]
        ) from error
    origin = {key: explicitly.setter(key) or ("checkpoint" if key in taken else "default") for key, _ in leaves(config)}
    origin |= {key: who for key, who in (explicitly.settled or {}).items() if key in origin}

    faults = _by_schema(config, explicitly.demanded)
    wrong = {fault.key for fault in faults}
    faults += [fault for fault in _later(config) if fault.key not in wrong]
    if wrong.isdisjoint(SECTIONS):  # rules between keys bear with wrong values, not with sections that are gone
        faults += [fault for fault in between(config, checkpoint, wrong, explicitly) if fault.key not in wrong]
    sources = {"recipe": "by the recipe", "checkpoint": f"by {checkpoint and checkpoint.path}/{DEFAULTS}"}
    if faults:
        raise Refused(_with_source(fault, sources.get(origin.get(fault.key, ""))) for fault in faults)

    if config["parallel"]["cfg"] and config["sampler"]["guidance_batch"] != "separate":
        config["sampler"]["guidance_batch"] = "separate"  # what it computes is that, so keys and pages say so
        origin["sampler.guidance_batch"] = "parallel.cfg"
    hardware = config["hardware"]
    compute = decide(hardware["compute"], hardware["device"], config["model"]["dtype"])
    if hardware["compute"] == "auto":
        hardware["compute"], origin["hardware.compute"] = compute.dtype, MACHINE
    assert checkpoint is not None  # its absence is a fault
    return Checked(config, origin, checkpoint, compute)


def _checkpoint(composed: DictConfig) -> Checkpoint | None:
    """The checkpoint that is asked for, None while it is not known which."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        name, revision, model = (
            OmegaConf.select(composed, f"model.{key}") for key in ("checkpoint", "revision", "name")
        )
    except OmegaConfBaseException:
        return None  # resolving the whole will say so
    if not isinstance(name, str) or not name or not isinstance(revision, str | None):
        return None
    return checkpoints.locate(name, revision, model if model in architectures() else None)


def _of_checkpoint(composed: DictConfig, checkpoint: Checkpoint | None) -> dict[str, Any]:
    """What the checkpoint wants, by full key: what its model reads from its files, and its defaults.yaml."""
    from omegaconf import OmegaConf

    if checkpoint is None or checkpoint.folder is None:
        return {}
    name = OmegaConf.select(composed, "model.name")
    rules = rules_of({"name": name}) if name in architectures() else None
    own = rules.defaults(checkpoint.folder) if rules is not None else {}
    return {**own, **checkpoint_defaults(checkpoint.folder)}


def _by_schema(config: Mapping[str, Any], demanded: Sequence[str]) -> list[Fault]:
    """What a key's own type says, and what must be given: where ??? stands, and what the recipe demands."""
    from pydantic import ValidationError

    missing = [*demanded, *(key for key, value in leaves(config) if value == MISSING)]
    faults = [Fault(key, f"must be given: {key}=...") for key in missing]
    try:
        Config.model_validate(config)
    except ValidationError as error:
        details = error.errors(include_url=False)
        if any(detail["type"] == "missing" and detail["loc"][0] == "model" for detail in details):  # a group has all
            expected = f"expected that the section has its other keys: choose it by model={config['model'].get('name')}"
            faults.append(Fault("model.name", expected))
            details = [detail for detail in details if detail["loc"][0] != "model"]
        faults += [_translate(detail) for detail in details]
    unique = {fault.key: fault for fault in reversed(faults)}  # a missing value also fits no type: say the first alone
    return [fault for fault in faults if unique[fault.key] is fault]


def _translate(detail: ErrorDetails) -> Fault:
    """pydantic's finding in this project's words."""
    place, value, context = list(detail["loc"]), detail["input"], detail.get("ctx", {})
    architecture = str(place.pop(1)) if place[0] == "model" and len(place) > 2 else None  # pydantic says which, too
    key = ".".join(str(part) for part in place if part not in ("int", "str"))  # and which of several types
    kinds = {
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "float_type": "a number",
        "finite_number": "a finite number",
        "bool_type": "true or false",
        "string_type": "a text",
        "list_type": "a list",
        "dict_type": "keys and values",
        "model_type": "a section of keys",
        "string_too_short": "a text that is not empty",
        "too_short": "a list that is not empty",
        "string_pattern_mismatch": "letters, digits and . _ + - only",
    }
    bounds = {
        "greater_than": "more than",
        "less_than": "less than",
        "greater_than_equal": "at least",
        "less_than_equal": "at most",
    }
    kind = detail["type"]
    if kind == "union_tag_not_found":
        return Fault("model.name", "has no value, and needs one")
    if kind == "union_tag_invalid":
        expected = f"expected {' or '.join(architectures())}"
        return Fault("model.name", expected, context["tag"], nearest(str(context["tag"]), architectures()))
    if kind == "extra_forbidden" and key in keys():
        others = [name for name in architectures() if key in keys(name)]
        return Fault(key, f"{architecture} has no such key ({', '.join(others)} has)")
    if kind == "extra_forbidden":
        return Fault(key, "there is no such key", meant=nearest_key(key, [*keys(architecture), *Config.model_fields]))
    if kind == "missing":
        return Fault(key, "has no value, and needs one")
    if kind == "literal_error":
        choices = str(context["expected"]).replace("'", "")
        names = choices.replace(" or ", ", ").split(", ")
        return Fault(key, f"expected {choices}", value, nearest(str(value), names))
    if kind in bounds:
        return Fault(key, f"expected {bounds[kind]} {next(iter(context.values()))}", value)
    if kind in kinds:
        return Fault(key, f"expected {kinds[kind]}", value)
    return Fault(key, detail["msg"], value)


def _later(config: Mapping[str, Any]) -> Iterator[Fault]:
    """Keys of features that are not there yet."""
    for key, value in leaves(config):
        if key in AVAILABLE and value not in AVAILABLE[key]:
            there = " or ".join(map(spell, AVAILABLE[key]))
            yield Fault(key, f"this feature is not there yet; the key must be {there}", value)


def _with_source(fault: Fault, source: str | None) -> Fault:
    return Fault(fault.key, f"{fault.expected} ({source})", fault.value, fault.meant) if source else fault
