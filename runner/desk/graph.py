"""The table of stages, and the plan: which run, in which order, under which key, and which are reused.

A key is a hash of everything that a stage's artifact is a function of, and of nothing else. Source code is not in it (a
comment must not cost an hour): a change of a stage's results is a new `version` in the table.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from runner.desk.checkpoints import weight_files
from runner.desk.fingerprints import Fingerprints
from runner.desk.store import Store

# Keys that can change no result: names, places (weights and prompts count by their content), and what is measured
# beside the results. A test holds that every key of the schema is either here or in some stage's `fields`.
NO_RESULT = (
    "name", "output", "show", "launch", "until", "redo", "model.checkpoint", "model.revision", "model.cache_dir",
    "model.vae", "model.text_encoder", "model.keep_float", "quant.folder", "cache.save_path", "sampler.search",
    "sampler.neighbour_type", "sampler.monte_carlo_iters", "sampler.videos_path", "sampler.save_dir", "cache.ratio",
    "parallel.master_port", "hardware.env", "dump.folder", "sample.folder", "timing.warmup", "timing.repeats",
)  # fmt: skip

# What a generation is a function of, besides weights and prompts; the device and the dtype change bits.
GENERATION = (
    "seed", "model.name", "model.ae", "model.model_type", "model.dtype", "model.num_frames", "model.height",
    "model.width", "model.fps", "model.batch_size", "model.max_sequence_length", "model.template",
    "model.negative_prompt", "model.clean_caption", "model.enable_tiling", "model.tile_overlap_factor",
    "model.save_memory", "sampler.sample_method", "sampler.num_sampling_steps", "sampler.guidance_scale",
    "sampler.guidance_batch", "sampler.schedule", "hardware.device", "parallel.world_size", "parallel.cfg",
    "parallel.ulysses", "parallel.vae",
)  # fmt: skip

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Stage:
    """A row of the table; the implementation is runner.stages.<name>."""

    name: str
    version: int  # raised when the same inputs give other results than before
    writes: str
    fields: tuple[str, ...] = ()  # keys that it reads itself; what it builds on speaks for the rest
    builds_on: tuple[str, ...] = ()  # earlier stages, each if it is in this run
    wanted: Callable[[Config], bool] = lambda config: True
    prompts: Callable[[Config], dict[str, list[str]]] = lambda config: {}
    clips: Callable[[Config], int] = lambda config: 0  # batches of clips that it generates


def _quantizes(config: Config) -> bool:
    return config["quant"]["scheme"] != "none"


def _dumped_prompts(config: Config) -> dict[str, list[str]]:
    """The prompts that dump runs, by what for: calls recorded for calibration, references to compare with."""
    prompts, found = config["prompts"], {}
    if _quantizes(config) and config["dump"]["from"] is None:
        found["calibration"] = prompts["calibration"]
    if config["sample"]["compare"]:
        found["text"] = prompts["text"]
    return found


def _dumped_clips(config: Config) -> int:
    """Recorded prompts run one by one; a reference on the same seed is the same clip, unless it is made in a batch."""
    prompts, batch = _dumped_prompts(config), config["model"]["batch_size"]
    recorded, text = prompts.get("calibration", []), prompts.get("text", [])
    shared = sum(a == b for a, b in zip(recorded, text, strict=False)) if batch == 1 else 0
    return len(recorded) + math.ceil((len(text) - shared) / batch)


STAGES = (
    Stage(
        "dump",
        version=1,
        writes="float videos, recorded calls, input statistics",
        fields=(*GENERATION, "dump.from", "dump.format"),
        wanted=lambda config: _quantizes(config) or config["sample"]["compare"],
        prompts=_dumped_prompts,
        clips=_dumped_clips,
    ),
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
        version=1,
        writes="int8 weights, their description, error by layer",
        fields=("quant.scheme",),
        builds_on=("dump", "calibrate"),
        wanted=_quantizes,
    ),
    Stage(
        "search",
        version=1,
        writes="what a search finds",
        builds_on=("dump", "quantize"),
        wanted=lambda config: False,  # no search exists yet
    ),
    Stage(
        "sample",
        version=1,
        writes="videos, comparison with float",
        fields=(
            *(*GENERATION, "sample.save", "sample.compare", "sample.judge", "sample.lpips", "sample.clip"),
            *("cache.policy", "cache.config"),
        ),
        builds_on=("dump", "quantize", "search"),
        prompts=lambda config: {"text": config["prompts"]["text"]},
        clips=lambda config: math.ceil(len(config["prompts"]["text"]) / config["model"]["batch_size"]),
    ),
)


@dataclass(frozen=True)
class PlannedStage:
    """One stage of this run, as plan.json lists it. A stage that has nothing to do is listed, too, without a key."""

    stage: str
    key: str
    action: Literal["run", "reuse", "skip"]
    reason: str
    writes: str = ""
    needs: tuple[str, ...] = ()
    forwards: int = 0  # of the transformer, to generate clips; what is measured beside that comes on top
    lineage: dict[str, Any] = field(default_factory=dict)  # what the key is a hash of


def plan(config: Config, store: Store, fingerprints: Fingerprints) -> list[PlannedStage]:
    """All stages, in order, for a checked configuration: each one's key, and whether the store has its artifact."""
    inputs = _inputs(config, fingerprints)
    planned: dict[str, PlannedStage] = {}
    for stage in STAGES:
        if not stage.wanted(config):
            planned[stage.name] = PlannedStage(stage.name, "", "skip", "nothing to do in this run")
            continue
        needs = tuple(name for name in stage.builds_on if planned[name].action != "skip")
        lineage = {
            "stage": stage.name,
            "version": stage.version,
            "fields": {key: _field(config, key, fingerprints) for key in stage.fields},
            "prompts": stage.prompts(config),
            "builds_on": {name: planned[name].key for name in needs},
            **inputs,
        }
        key = digest(lineage)
        entry, found = store.inspect(stage.name, key)
        planned[stage.name] = PlannedStage(
            stage.name,
            key,
            "reuse" if entry else "run",
            found,
            stage.writes,
            needs,
            stage.clips(config) * forwards(config["sampler"]),
            lineage,
        )
    return list(planned.values())


def digest(lineage: Mapping[str, Any]) -> str:
    """The key: sixteen hex digits of the sha256 of what an artifact is a function of."""
    canonical = json.dumps(lineage, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def forwards(sampler: Mapping[str, Any]) -> int:
    """How often one generation calls the transformer: the solver's evaluations, twice where each branch has its own."""
    steps, method = sampler["num_sampling_steps"], sampler["sample_method"]
    evaluations = {
        "HeunDiscrete": 2 * steps - 1,
        "KDPM2AncestralDiscrete": 2 * steps - 1,
        "PNDM": steps + 9,
    }.get(method, steps)
    guided = sampler["guidance_scale"] > 1 and sampler["guidance_batch"] == "separate"
    return evaluations * (2 if guided else 1)


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
    return {"weights": weights, "torch": torch_release()}


def torch_release() -> str:
    """Major and minor version of the installed torch ("none" without one)."""
    try:
        return ".".join(metadata.version("torch").split(".")[:2])
    except metadata.PackageNotFoundError:
        return "none"


def _field(config: Config, key: str, fingerprints: Fingerprints) -> Any:
    """The value of a key as far as results depend on it: a file's content; nothing of another observer's parameter."""
    section, _, name = key.rpartition(".")
    value = config[section][name] if section else config[name]
    if key == "dump.from" and value is not None:
        return fingerprints.sha256(Path(value))
    if key == "quant.percentile" and config["quant"]["observer"] != "percentile":
        return None
    return value
