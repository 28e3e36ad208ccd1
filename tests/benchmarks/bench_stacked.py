"""Each technique alone and all together, on the shipped weights: FLOPs, speed and quality beside 100 steps in float.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_stacked.py [--clips 60] [--rounds 7] [--output outputs]

Runs the recipes (artifacts are reused when it is run again), on prompts and noise that no search has seen. Then the
denoising loops of all arms are timed in one process on one thread, in turn, by its CPU time: the ratio is that of the
medians, with its 95 % interval by the bootstrap over rounds. FLOPs are counted on the float model; int8 saves none, so
its share stands beside them.

Passes when all together are at least 2.3 times as fast at 50 steps and 3.5 times at 25 (reached when the middle is at
least 0.97 of it and the upper end at least it), the judge's paired interval above -2 points.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bench_schedule import arguments, figures, made, run
from processor_line import say_processor
from torch.utils.flop_counter import FlopCounterMode

from runner.bench.context import Bench, quantized_transformer
from runner.cache import rules
from runner.cache.policy import Policy
from runner.cache.reuse import Reuse
from runner.generation.generate import generate
from runner.generation.steps import Steps
from runner.hardware import open_device
from runner.metrics.paired import paired_interval
from runner.model import blocks
from runner.sampler import schedules

WANTED = {"all, 50 steps": 2.3, "all, 25 steps": 3.5}
RESAMPLES = 2000


@dataclass
class Arm:
    """A run and what it takes to time its denoising loop: the transformer, the timesteps, what is reused."""

    folder: Path
    config: dict[str, Any]
    transformer: Any
    timesteps: list[float]
    policy: Policy


def arms(options: argparse.Namespace) -> dict[str, Path]:
    """The run of each arm; the first one is what the others are compared with."""
    long = f"sampler.num_sampling_steps={options.recorded}"
    half, quarter = (f"sampler.num_sampling_steps={options.recorded // n}" for n in (2, 4))
    asked = {
        "float": ("+recipe=osp12_baseline",),
        "schedule, 50 steps": ("+recipe=osp12_schedule", half),
        "cache, 1.3": ("+recipe=osp12_dit_cache", "sample.compare=false", long),
        "W8A8": ("+recipe=osp12_w8a8", "sample.compare=false", "timing.repeats=0", long),
        "all, 50 steps": ("+recipe=osp12_stacked", "timing.repeats=0", half),
        "all, 25 steps": ("+recipe=osp12_stacked", "timing.repeats=0", quarter),
    }
    folders = {}
    for name, given in asked.items():
        slug = "bench_" + "".join(c if c.isalnum() else "_" for c in name)
        folders[name] = run(options, slug, *given)
    return folders


def load(folder: Path, transformer: Any, pipeline: Any) -> Arm:
    """An arm from its run folder; `transformer` is the float one, for those that do not quantize."""
    config = json.loads((folder / "run.json").read_text())["config"]
    if config["quant"]["scheme"] != "none":
        transformer = quantized_transformer(config, folder / "quantize")
    file = folder / "search-schedule" / schedules.NAME
    if file.is_file():
        timesteps = schedules.timesteps(file)
    else:
        pipeline.scheduler.set_timesteps(config["sampler"]["num_sampling_steps"])
        timesteps = pipeline.scheduler.timesteps.tolist()
    found = rules.chosen(config["cache"], folder / "search-cache")
    count = len(blocks(pipeline))
    policy = found.policy(len(timesteps), count) if found else Policy((None,) * len(timesteps))
    return Arm(folder, config, transformer, timesteps, policy)


def loop_seconds(arm: Arm, pipeline: Any) -> float:
    """CPU time of one clip's denoising loop: from the first call of the transformer to the end of the last step."""
    pipeline.transformer = arm.transformer
    started: list[float] = []
    hook = arm.transformer.register_forward_pre_hook(lambda *_: started.append(time.process_time()))
    try:
        with Steps(pipeline) as steps, Reuse(pipeline.transformer, steps, arm.policy):
            ended: list[float] = []
            steps.after.append(lambda _: ended.append(time.process_time()))
            text, hardware = arm.config["prompts"]["text"][-1:], open_device("cpu")
            generate(pipeline, arm.config, text, [1], hardware, decode=False, timesteps=arm.timesteps, steps=steps)
    finally:
        hook.remove()
    return ended[-1] - started[0]


def flops(pipeline: Any, transformer: Any, config: dict[str, Any]) -> tuple[int, list[int]]:
    """FLOPs of one evaluation of the float model, and of each block in it."""
    pipeline.transformer = transformer
    names = blocks(pipeline)
    with FlopCounterMode(display=False, depth=None) as counter:
        generate(
            pipeline, config, ["a red circle standing still"], [1], open_device("cpu"), decode=False, timesteps=[500]
        )
    counts = {name.partition(".")[2]: sum(by.values()) for name, by in counter.get_flop_counts().items()}
    total = next(
        sum(by.values()) for name, by in counter.get_flop_counts().items() if name == type(transformer).__name__
    )
    return total, [counts[name] for name in names]


def predicted(arm: Arm, total: int, each: Sequence[int]) -> int:
    """FLOPs of the arm's whole loop."""
    return sum(total - (sum(each[slice(*reused)]) if reused else 0) for reused in arm.policy.ranges)


def ratio_of(before: Sequence[float], after: Sequence[float]) -> tuple[float, float, float]:
    """Ratio of medians with its 95 % interval; rounds are drawn together."""
    dice, n = random.Random(0), len(before)
    drawn = []
    for _ in range(RESAMPLES):
        rounds = [dice.randrange(n) for _ in range(n)]
        drawn.append(statistics.median(before[i] for i in rounds) / statistics.median(after[i] for i in rounds))
    drawn.sort()
    middle = statistics.median(before) / statistics.median(after)
    return middle, drawn[round(0.025 * RESAMPLES)], drawn[round(0.975 * RESAMPLES) - 1]


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    say_processor()
    folders = arms(options)
    torch.set_num_threads(1)
    base = json.loads((folders["float"] / "run.json").read_text())["config"]
    pipeline = Bench().pipeline(base)
    transformer = pipeline.transformer
    loaded = {name: load(folder, transformer, pipeline) for name, folder in folders.items()}
    total, each = flops(pipeline, transformer, base)
    seconds: dict[str, list[float]] = {name: [] for name in loaded}
    for turn in range(options.rounds + 1):
        for name, arm in loaded.items():
            took = loop_seconds(arm, pipeline)
            if turn:  # the first round warms up
                seconds[name].append(took)

    reference = loaded["float"]
    references = [clip for _, clip in made(folders["float"])]
    print(f"\n{len(references)} clips; {options.rounds} rounds of CPU time on one thread")
    print("                      FLOPs   in int8   measured [95 %]         latent error   judge, points [95 %]")
    passed = True
    for name, arm in loaded.items():
        saved = predicted(reference, total, each) / predicted(arm, total, each)
        middle, low, high = ratio_of(seconds["float"], seconds[name])
        errors, judged = figures(made(arm.folder), references)
        change = paired_interval(*zip(*judged, strict=True))
        points = [100 * (value or 0.0) for value in change[:3]]
        ledger = json.loads((arm.folder / "sample" / "metrics.json").read_text()).get("ledger", {})
        print(
            f"  {name:<18} {saved:6.2f} x {100 * ledger.get('int8_share', 0.0):6.1f} %   "
            f"{middle:5.2f} x [{low:.2f}, {high:.2f}]   {statistics.fmean(errors):10.4f}   "
            f"{points[0]:+.2f} [{points[1]:+.2f}, {points[2]:+.2f}]"
        )
        if name in WANTED:
            reached = middle >= 0.97 * WANTED[name] and high >= WANTED[name]
            passed &= reached and change.low is not None and change.low > -0.02
    print("\nreached" if passed else "\nnot reached")
    return int(not passed)


if __name__ == "__main__":
    sys.exit(main())
