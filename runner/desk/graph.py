"""The table of stages, and the plan: which run, in which order, under which key, and which are reused.

A key is a hash of everything that a stage's artifact is a function of, and of nothing else. Source code is not in it (a
comment must not cost an hour): a change of a stage's results is a new `version` in the table.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from runner.cache import policy, rules
from runner.desk import earlier, machine
from runner.desk.asked import as_asked
from runner.desk.checkpoints import reference_files, weight_files
from runner.desk.fingerprints import Fingerprints
from runner.desk.forwards import (
    TRAJECTORIES,
    forwards,
    shared,
    to_measure_layers,
    to_measure_samples,
    to_replay,
    to_search_cache,
    to_search_schedule,
    to_warm_up,
    uncertain,
)
from runner.desk.needs import Needs
from runner.desk.store import NOT_STORED, Store
from runner.sampler import schedules
from runner.sampler.rules import videos

# Keys that can change no result: names, places (weights and prompts count by their content), and what is measured
# beside the results. A test holds that every key of the schema is either here or in some stage's `fields`.
NO_RESULT = (
    "name", "output", "show", "launch", "until", "redo", "model.checkpoint", "model.revision", "model.cache_dir",
    "model.vae", "model.text_encoder", "model.vae2d", "model.vae3d", "model.checkpoint_pin", "model.text_encoder_pin",
    "model.vae2d_pin", "model.vae3d_pin", "model.tables", "model.resolution", "model.aspect_ratio",  # the size counts
    "model.keep_float", "quant.folder", "cache.save_path",
    "sampler.save_dir",
    "parallel.world_size", "parallel.cfg", "parallel.nodes", "parallel.master_addr", "parallel.master_port",
    "hardware.env", "dump.folder", "sample.folder", "timing.benchmark",
)  # fmt: skip

# What a generation is a function of, besides weights and prompts; the device and the dtype change bits.
GENERATION = (
    "seed", "model.name", "model.ae", "model.model_type", "model.dtype", "model.num_frames", "model.height",
    "model.width", "model.fps", "model.batch_size", "model.max_sequence_length", "model.template",
    "model.negative_prompt", "model.clean_caption", "model.enable_tiling", "model.tile_overlap_factor",
    "model.save_memory", "model.aes", "model.flow", "model.camera_motion", "model.loop", "model.condition_frame_length",
    "model.condition_frame_edit", "model.align", "model.micro_batch_size", "model.micro_frame_size",
    "model.call", "model.blocks", "model.text_encoder_3",
    "sampler.sample_method", "sampler.num_sampling_steps", "sampler.guidance_scale",
    "sampler.guidance_batch", "sampler.schedule", "sampler.noise",
    "recording.steps", "hardware.device", "parallel.ulysses", "parallel.vae",
)  # fmt: skip

SEARCH = ("sampler.search", "sampler.neighbour_type", "sampler.monte_carlo_iters", "sampler.videos_path")

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Stage:
    """A row of the table: a stage of a run, and its folder there. `does` names the work, and the artifacts in the
    store: a run may do the same work twice, under two names and with other values of some keys."""

    name: str
    version: int  # raised when the same inputs give other results than before
    writes: str
    fields: tuple[str, ...] = ()  # keys that it reads itself; what it builds on speaks for the rest
    builds_on: tuple[str, ...] = ()  # earlier stages, each if it is in this run
    does: str = ""  # the implementation, runner.stages.<does>; by default the one of this name
    sets: Mapping[str, str] = field(default_factory=dict)  # keys that have another key's value in this row
    wanted: Callable[[Config], bool] = lambda config: True
    prompts: Callable[[Config], dict[str, list[str]]] = lambda config: {}
    clips: Callable[[Config], int] = lambda config: 0  # batches of clips that it generates
    beside: Callable[[Config], int] = lambda config: 0  # forwards of the transformer that generate no clip
    at_most: Callable[[Config], bool] = lambda config: False  # whether these are a bound, because the stage decides
    timed: bool = False  # whether it decides by what was measured, so that another machine's artifact is another


def _quantizes(config: Config) -> bool:
    return config["quant"]["scheme"] != "none"


def _searches_schedule(config: Config) -> bool:
    return config["sampler"]["search"] is not None


def _searches_cache(config: Config) -> bool:
    return rules.searches(config["cache"])


def _dumped_prompts(config: Config) -> dict[str, list[str]]:
    """The prompts that dump runs, by what for: recorded for calibration, references to compare with."""
    prompts, found = config["prompts"], {}
    if (_quantizes(config) or _searches_cache(config)) and config["dump"]["from"] is None:
        found["calibration"] = prompts["calibration"]
    if _searches_cache(config):
        found["verification"] = prompts["verification"]
    if config["sample"]["compare"] and not _searches_schedule(config):
        found["text"] = prompts["text"]
    return found


def _dumped_for_schedule(config: Config) -> dict[str, list[str]]:
    """The prompts of the longer run that a schedule is searched in: that run is also what samples are compared with."""
    prompts = config["prompts"]
    found: dict[str, list[str]] = {}
    if config["sampler"]["search"] == "recording":
        found["verification"] = prompts["verification"][:1]
    if config["sampler"]["videos_path"] is None:
        found["trajectory"] = prompts["calibration"][:TRAJECTORIES]
    return found | ({"text": prompts["text"]} if config["sample"]["compare"] else {})


def _clips(prompts: Mapping[str, list[str]], batch: int) -> int:
    """Recorded prompts run one by one, references in batches."""
    alone = sum(len(prompts.get(role, ())) for role in ("calibration", "trajectory", "verification"))
    return alone + math.ceil((len(prompts.get("text", ())) - shared(prompts, batch)) / batch)


def _batches(config: Config) -> int:
    return math.ceil(len(config["prompts"]["text"]) / config["model"]["batch_size"])


DUMP = Stage(
    "dump",
    version=2,
    writes="float videos, recorded calls and steps, input statistics",
    fields=(*GENERATION, "recording.lags", "dump.from", "dump.format"),
    builds_on=("search-schedule",),
    wanted=lambda config: bool(_dumped_prompts(config)) or _quantizes(config),
    prompts=_dumped_prompts,
    clips=lambda config: _clips(_dumped_prompts(config), config["model"]["batch_size"]),
    beside=to_replay,
)

STAGES = (
    replace(
        DUMP,
        name="dump-schedule",
        does="dump",
        sets={"sampler.num_sampling_steps": "recording.steps"},
        builds_on=(),
        wanted=lambda config: _searches_schedule(config) and bool(_dumped_for_schedule(config)),
        prompts=_dumped_for_schedule,
        clips=lambda config: _clips(_dumped_for_schedule(config), config["model"]["batch_size"]),
        beside=lambda config: 0,
    ),
    Stage(
        "search-schedule",
        version=1,
        writes="the timesteps that a search finds",
        # Without a recording it is a function of what a generation is.
        fields=(*GENERATION, *SEARCH),
        builds_on=("dump-schedule",),
        wanted=_searches_schedule,
        beside=to_search_schedule,
        at_most=lambda config: config["sampler"]["search"] == "recording",
    ),
    DUMP,
    Stage(
        "calibrate",
        version=1,
        writes="input ranges of the linears",
        fields=("quant.observer", "quant.percentile", "quant.include", "quant.exclude"),
        builds_on=("dump",),
        wanted=_quantizes,
    ),
    Stage(
        "quantize",
        version=2,
        writes="int8 weights, their description, error by layer",
        fields=("quant.scheme",),
        builds_on=("dump", "calibrate"),
        wanted=_quantizes,
        beside=to_measure_layers,
        at_most=lambda config: config["dump"]["from"] is not None or uncertain(config),
    ),
    Stage(
        "search-cache",
        version=1,
        writes="which blocks are reused at which step",
        builds_on=("search-schedule", "dump", "quantize"),
        fields=("cache.policy", "cache.ratio", "cache.quality", "cache.search", "cache.step_interval"),
        wanted=_searches_cache,
        beside=to_search_cache,
        at_most=lambda config: True,
        timed=True,
    ),
    Stage(
        "benchmark",
        version=1,
        writes="videos; times of whole generations by phase",
        fields=(*GENERATION, "timing.warmup", "timing.repeats"),
        builds_on=("search-schedule", "quantize"),
        wanted=lambda config: config["timing"]["benchmark"],
        prompts=lambda config: {"text": config["prompts"]["text"]},
        clips=lambda config: _batches(config) * config["timing"]["repeats"],
        beside=to_warm_up,
    ),
    Stage(
        "sample",
        version=1,
        writes="videos, comparison with float",
        fields=(
            *(*GENERATION, "sample.save", "sample.compare", "sample.judge", "sample.lpips", "sample.clip"),
            *("cache.policy", "cache.config", "cache.step_start", "cache.step_interval", "cache.block_start"),
            "cache.num_blocks",
        ),
        builds_on=("dump-schedule", "search-schedule", "dump", "quantize", "search-cache"),
        prompts=lambda config: {"text": config["prompts"]["text"]},
        clips=lambda config: _batches(config),
        beside=to_measure_samples,
    ),
)


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
        builds_on = tuple(name for name in stage.builds_on if planned[name].action != "skip")
        lineage = {
            "stage": does,
            "version": stage.version,
            "fields": {key: _field(seen, key, fingerprints) for key in stage.fields if has(seen, key)},
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


def _field(config: Config, key: str, fingerprints: Fingerprints) -> Any:
    """The value of a key as far as results depend on it: a file's content; nothing of another observer's parameter."""
    found = value(config, key)
    if key == "dump.from" and found is not None:
        return fingerprints.sha256(Path(found))
    if key == "sampler.schedule" and found is not None:
        return schedules.read(Path(found))
    if key == "cache.config" and found is not None:
        return policy.read(Path(found)).to_json()
    if key == "recording.lags" and not _searches_cache(config):
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
