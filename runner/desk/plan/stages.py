"""The table of stages: what each needs, writes, and is a function of; runner.stages.<does> does it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from runner.cache import rules as cache
from runner.desk.plan.forwards import (
    TRAJECTORIES,
    records_calls,
    shared,
    to_measure_layers,
    to_measure_samples,
    to_replay,
    to_search_cache,
    to_search_schedule,
    to_warm_up,
    uncertain,
)
from runner.quant import rules as quant

# Keys that can change no result: names, places (weights and prompts count by their content), and what is measured
# beside the results. A test holds that every key of the schema is either here or in some stage's `fields`.
NO_RESULT = (
    "name", "output", "show", "launch", "until", "redo", "model.checkpoint", "model.revision", "model.cache_dir",
    "model.vae", "model.text_encoder", "model.vae2d", "model.vae3d", "model.checkpoint_pin", "model.text_encoder_pin",
    "model.vae2d_pin", "model.vae3d_pin", "model.tables", "model.resolution", "model.aspect_ratio",  # the size counts
    "model.keep_float", "quant.folder", "cache.save_path",
    "sampler.save_dir",
    "parallel.world_size", "parallel.cfg", "parallel.nodes", "parallel.master_addr", "parallel.master_port",
    "hardware.env", "hardware.offload", "hardware.layerwise_casting", "dump.folder", "sample.folder",
    "timing.benchmark",
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
    "recording.steps", "hardware.device", "hardware.compute", "parallel.ulysses", "parallel.vae",
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
    # Whether a key of `fields`, or a stage of `builds_on`, has a part in its results in this configuration.
    counts: Callable[[Config, str], bool] = lambda config, what: True
    timed: bool = False  # whether it decides by what was measured, so that another machine's artifact is another


def _quantizes(config: Config) -> bool:
    return config["quant"]["scheme"] != "none"


def _calibrates(config: Config) -> bool:
    return quant.calibrates(config["quant"])


def _searches_schedule(config: Config) -> bool:
    return config["sampler"]["search"] is not None


def searches_cache(config: Config) -> bool:
    return cache.searches(config["cache"])


def _dumped_prompts(config: Config) -> dict[str, list[str]]:
    """The prompts that dump runs, by what for: recorded for calibration, references to compare with."""
    prompts, found = config["prompts"], {}
    if records_calls(config) and config["dump"]["from"] is None:
        found["calibration"] = prompts["calibration"]
    if searches_cache(config):
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
    version=3,
    writes="float videos, recorded calls and steps, input statistics",
    fields=(*GENERATION, "recording.lags", "dump.from", "dump.format"),
    builds_on=("search-schedule",),
    wanted=lambda config: bool(_dumped_prompts(config)) or _calibrates(config),
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
        fields=("quant.observer", "quant.percentile", "quant.include", "quant.exclude", "quant.scheme"),
        counts=lambda config, what: quant.counts_in_calibrate(config["quant"], what),
        builds_on=("dump",),
        wanted=_calibrates,
    ),
    Stage(
        "quantize",
        version=2,
        writes="int8 weights, their description, error by layer",
        fields=("quant.scheme", "quant.include", "quant.exclude", *quant.parameters()),
        counts=lambda config, what: quant.counts_in_quantize(config["quant"], what),
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
        wanted=searches_cache,
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
