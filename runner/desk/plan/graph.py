"""The plan: which stages run, in which order, under which key, and which are reused.

A key is a hash of everything that a stage's artifact is a function of, and of nothing else. Source code is not in it (a
comment must not cost an hour): a change of a stage's results is a new `version` in the table.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from runner.cache import policy
from runner.desk.plan import earlier
from runner.desk.plan.asked import as_asked
from runner.desk.plan.forwards import forwards, uncertain
from runner.desk.plan.needs import Needs
from runner.desk.plan.stages import SEARCH, STAGES, Config, searches_cache
from runner.model.checkpoints import reference_files, weight_files
from runner.sampler import schedules
from runner.sampler.rules import videos
from runner.store import machine
from runner.store.artifacts import NOT_STORED, Store
from runner.store.fingerprints import Fingerprints


@dataclass(frozen=True)
class PlannedStage:
    """One stage of this run, as plan.json lists it. A stage that has nothing to do is listed, too, without a key.

    `does` is the work that it does, by which its artifact is stored; `sets` are the keys that have another value here.
    """

    stage: str
    does: str
    key: str
    action: Literal["run", "reuse", "skip"]
    reason: str
    writes: str = ""
    needs: tuple[str, ...] = ()
    forwards: int = 0  # of the transformer, all of them; a guided pair in one batch is one
    at_most: bool = False  # whether `forwards` is a bound
    sets: dict[str, Any] = field(default_factory=dict)
    lineage: dict[str, Any] = field(default_factory=dict)  # what the key is a hash of
    clips: int = 0  # batches of clips that it generates
    disk: int | None = None  # bytes that it writes, if that is known
    memory: int | None = None  # bytes at its peak, about
    redo: float | None = None  # what is stored is made again if it is older than this (seconds since 1970)


def plan(config: Config, store: Store, fingerprints: Fingerprints) -> list[PlannedStage]:
    """All stages, in order, for a checked configuration: each one's key, and whether the store has its artifact.

    Raises Refused where `redo` asks for a stage that has no part in the run.
    """
    inputs = _inputs(config, fingerprints)
    planned: dict[str, PlannedStage] = {}
    needs = Needs(config)
    for stage in STAGES:
        does = stage.does or stage.name
        if not stage.wanted(config):
            planned[stage.name] = PlannedStage(stage.name, does, "", "skip", "nothing to do in this run")
            continue
        sets = {key: value(config, source) for key, source in stage.sets.items()}
        seen = with_values(config, sets)
        builds_on = tuple(
            name for name in stage.builds_on if planned[name].action != "skip" and stage.counts(seen, name)
        )
        lineage = {
            "stage": does,
            "version": stage.version,
            "fields": {
                key: _field(seen, key, fingerprints)
                for key in stage.fields
                if _counts(seen, key) and stage.counts(seen, key)
            },
            "prompts": stage.prompts(config),
            "builds_on": {name: planned[name].key for name in builds_on},
            **inputs,
            **({"machine": machine.identity()} if stage.timed else {}),
        }
        key, clips = digest(lineage), stage.clips(seen)
        entry, found = store.inspect(does, key)
        if found == NOT_STORED:
            found = earlier.why(lineage, key, store.lineages) or found
        planned[stage.name] = PlannedStage(
            stage.name,
            does,
            key,
            "reuse" if entry else "run",
            found,
            stage.writes,
            builds_on,
            clips * forwards(seen) + stage.beside(seen),
            stage.at_most(seen) or (clips > 0 and uncertain(seen)),
            sets,
            lineage,
            clips=clips,
            disk=needs.disk(does, seen, lineage["prompts"]),
            memory=needs.memory(does, seen),
        )
    return as_asked(list(planned.values()), config["until"], config["redo"])


def has(config: Config, key: str) -> bool:
    """Whether the configuration has this full key: each architecture has some of its own."""
    section, _, name = key.rpartition(".")
    return not section or name in config[section]


def value(config: Config, key: str) -> Any:
    """The value of a full key."""
    section, _, name = key.rpartition(".")
    return config[section][name] if section else config[name]


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """A configuration in which some full keys have other values."""
    for key, new in values.items():
        section, _, name = key.rpartition(".")
        config = {**config, **({section: {**config[section], name: new}} if section else {name: new})}
    return config


def digest(lineage: Mapping[str, Any]) -> str:
    """The key: sixteen hex digits of the sha256 of what an artifact is a function of."""
    canonical = json.dumps(lineage, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def unread(config: Config, fingerprints: Fingerprints) -> int:
    """Bytes of weights that planning must read because their hashes are not known yet."""
    files = (file for file in weight_files(config).values() if isinstance(file, Path))
    return sum(file.stat().st_size for file in files if not fingerprints.knows(file))


def _inputs(config: Config, fingerprints: Fingerprints) -> dict[str, Any]:
    """What every stage depends on: the weights by content, and the release line of the torch that computes."""
    weights = {
        name: fingerprints.sha256(file) if isinstance(file, Path) else file
        for name, file in weight_files(config).items()
    }
    inputs: dict[str, Any] = {"weights": weights, "torch": torch_release()}
    if references := reference_files(config):
        inputs["references"] = [fingerprints.sha256(file) for file in references]
    return inputs


def torch_release() -> str:
    """Major and minor version of the installed torch ("none" without one)."""
    try:
        return ".".join(metadata.version("torch").split(".")[:2])
    except metadata.PackageNotFoundError:
        return "none"


def _counts(config: Config, key: str) -> bool:
    """Whether a key has a part in a stage's results: the architecture has it, and it says something of its own."""
    if key == "hardware.compute" and config["hardware"]["compute"] == config["model"]["dtype"]:
        return False  # as it always was before there was this key
    return has(config, key)


def _field(config: Config, key: str, fingerprints: Fingerprints) -> Any:
    """The value of a key as far as results depend on it: a file's content; nothing of another observer's parameter."""
    found = value(config, key)
    if key == "dump.from" and found is not None:
        return fingerprints.sha256(Path(found))
    if key == "sampler.schedule" and found is not None:
        return schedules.read(Path(found))
    if key == "cache.config" and found is not None:
        return policy.read(Path(found)).to_json()
    if key == "recording.lags" and not searches_cache(config):
        return None
    if key == "recording.steps" and config["sampler"]["noise"] != "path":
        return None
    if key in SEARCH[1:] and config["sampler"]["search"] != "ays":
        return None
    if key == "sampler.videos_path" and found is not None:
        return [fingerprints.sha256(file) for file in videos(Path(found))]
    if key == "quant.percentile" and config["quant"]["observer"] != "percentile":
        return None
    return found
