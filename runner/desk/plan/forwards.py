"""How often a run calls the transformer: counted before anything runs, and equal to what is counted then."""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.cache import exhaustive
from runner.cache import policy as search
from runner.cache import rules as cache
from runner.model import checkpoints
from runner.quant import rules as quant
from runner.sampler import probes

Config = Mapping[str, Any]
TRAJECTORIES = 2  # calibration prompts that a schedule is searched on: the first ones
WARMUP_STEPS = 5  # of a generation that warms up for a benchmark; a test holds its stage to this number
SNR_CALLS = 4  # recorded calls of a prompt that quantize measures layers on; a test holds its stage to this number


def evaluations(sampler: Mapping[str, Any]) -> int:
    """How often the solver evaluates the model for one clip: the steps that a cache or a schedule counts."""
    steps, method = sampler["num_sampling_steps"], sampler["sample_method"]
    return {
        "HeunDiscrete": 2 * steps - 1,
        "FlowMatchHeunDiscrete": 2 * steps - 1,
        "KDPM2Discrete": 2 * steps - 1,
        "KDPM2AncestralDiscrete": 2 * steps - 1,
        "PNDM": steps + 9,
    }.get(method, steps)


def forwards(config: Config) -> int:
    """How often one generation calls the transformer: the solver's evaluations, twice where each branch has its own,
    and all of it for each clip that a video is joined of (model.loop). Where the pipeline decides how guidance is
    batched (guidance_batch null), at most so often."""
    sampler = config["sampler"]
    apart = sampler["guidance_scale"] > 1 and sampler["guidance_batch"] != "joint"
    return config["model"].get("loop", 1) * evaluations(sampler) * (2 if apart else 1)


def uncertain(config: Config) -> bool:
    """Whether `forwards` is a bound: a foreign pipeline has one branch or two, and shows which when it runs."""
    return config["sampler"]["guidance_scale"] > 1 and config["sampler"]["guidance_batch"] is None


def to_search_cache(config: Config) -> int:
    """Of the search of a cache: at most these, of probes and verification, or all of exhaustive's candidates."""
    each, cache = forwards(config), config["cache"]
    if cache["search"] != "exhaustive":
        return search.GENERATIONS * each
    blocks = checkpoints.blocks(config["model"])
    if blocks is None:  # a hub id: its config.json is not here
        return 0
    steps = evaluations(config["sampler"])
    tried = exhaustive.at_most(steps, blocks, cache["ratio"], cache["step_interval"] or exhaustive.INTERVAL)
    return tried * each * len(config["prompts"]["verification"])


def shared(prompts: Mapping[str, Sequence[str]], batch: int) -> int:
    """How many references of a dump are clips that it records anyway: of the same prompt and seed, and not made in a
    batch, whose bits may differ."""
    recorded = prompts.get("calibration", prompts.get("trajectory", ()))
    pairs = zip(recorded, prompts.get("text", ()), strict=False)
    return sum(one == other for one, other in pairs) if batch == 1 else 0


def to_replay(config: Config) -> int:
    """Of dump beside its generations: one for each call in a file of the user's own."""
    file = config["dump"]["from"]
    return 0 if file is None else records(Path(file))


def to_search_schedule(config: Config) -> int:
    """Of the searches: Align Your Steps', or at most continuations of a recording and the schedules that are tried."""
    sampler = config["sampler"]
    one = forwards({**config, "sampler": {**sampler, "num_sampling_steps": 1}})
    if sampler["search"] == "ays":
        unguided = sampler["videos_path"] is not None
        aligned = probes.to_align(sampler["num_sampling_steps"], sampler["monte_carlo_iters"])
        return aligned if unguided else one * aligned
    prompts = min(TRAJECTORIES, len(config["prompts"]["calibration"]))
    tried = probes.TRIED * sampler["num_sampling_steps"]
    return one * (probes.evaluations(config["recording"]["steps"], prompts) + tried)


def records_calls(config: Config) -> bool:
    """Whether dump records calls of the transformer: for calibration, and to search a cache."""
    return quant.calibrates(config["quant"]) or cache.searches(config["cache"])


def to_measure_layers(config: Config) -> int:
    """Of quantize: the float model, on some recorded calls of each prompt. Of a file of the user's own, at most all."""
    if not quant.calibrates(config["quant"]):
        return 0  # the error of the weights needs none
    if config["dump"]["from"] is not None:
        return to_replay(config)
    calls = forwards(config)
    return len(config["prompts"]["calibration"]) * math.ceil(calls / max(1, calls // SNR_CALLS))


def to_measure_samples(config: Config) -> int:
    """Of sample beside its generations: one under the profiler, and the steps of both models that are timed in turn."""
    if config["quant"]["scheme"] == "none" or not records_calls(config):
        return 0
    timing = config["timing"]
    return 1 + (2 * (timing["warmup"] + timing["repeats"]) if timing["repeats"] else 0)


def to_warm_up(config: Config) -> int:
    """Of benchmark beside what it times: generations of few steps."""
    sampler = config["sampler"]
    short = {**sampler, "num_sampling_steps": min(WARMUP_STEPS, sampler["num_sampling_steps"])}
    return config["timing"]["warmup"] * forwards({**config, "sampler": short})


def records(file: Path) -> int:
    """How many calls a .pth list of them holds: its outline is read, nothing in it executed and no tensor loaded.

    0 for a file of another kind, which dump will refuse.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            found = _Outline(io.BytesIO(archive.read(name))).load()
    except Exception:  # a damaged pickle raises almost anything
        return 0
    return len(found) if isinstance(found, list) else 0


class _Outline(pickle.Unpickler):
    """Builds lists and dictionaries; whatever else a pickle names becomes a thing without behavior."""

    def find_class(self, module: str, name: str) -> Any:
        return _Thing

    def persistent_load(self, identity: Any) -> Any:
        return _Thing()


class _Thing:
    def __init__(self, *_: Any) -> None: ...

    def __call__(self, *_: Any) -> _Thing:
        return self

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...
