"""What a policy gains in speed: predicted from the time of each block, measured on the steps of real runs."""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runner.cache.policy import Policy, Range
from runner.generation.steps import Steps
from runner.hardware import Hardware

RESAMPLES = 400  # of the bootstrap


@dataclass(frozen=True)
class Times:
    """The time of a step that computes all, and of each block in it, in one unit."""

    step: float
    blocks: tuple[float, ...]

    def saved(self, reused: Range | None) -> float:
        """What a step saves by reusing this range."""
        return sum(self.blocks[slice(*reused)]) if reused else 0.0

    def speedup(self, policy: Policy) -> float:
        """How many times as fast as computing everything."""
        full = self.step * len(policy.ranges)
        return full / (full - sum(map(self.saved, policy.ranges)))

    def fitted(self, share: float) -> Times:
        """With the time of all blocks together times `share`, at most all of the step."""
        share = min(share, self.step / sum(self.blocks))
        return Times(self.step, tuple(seconds * share for seconds in self.blocks))


class StepTimes:
    """The device's clock at the end of each step of one generation."""

    def __init__(self, steps: Steps, hardware: Hardware) -> None:
        self._marks: list[float] = []
        steps.after.append(lambda _: self._marks.append(hardware.clock()))

    def seconds(self, first: int = 1) -> dict[int, float]:
        """Seconds of each step from `first` on; the very first step holds the text encoding and has none."""
        return {t: self._marks[t] - self._marks[t - 1] for t in range(max(first, 1), len(self._marks))}


def measured(policy: Policy, runs: Sequence[Mapping[int, float]]) -> dict[str, Any]:
    """The speed-up that the steps of some runs under one policy show, with its 95 % interval by the bootstrap.

    Steps that reuse the same blocks are one group, those that compute all are another. A loop takes the median of each
    group times its number of steps; without any reuse it takes the median of a full step for all. Both kinds of steps
    come from the same runs, in turn, so that a machine's moods meet both. {} where a kind of step was not timed.
    """
    groups: dict[Range | None, list[float]] = {}
    for seconds in runs:
        for step, value in seconds.items():
            groups.setdefault(policy.ranges[step], []).append(value)
    counts = {reused: policy.ranges.count(reused) for reused in dict.fromkeys(policy.ranges)}
    if not set(counts) <= set(groups) or None not in groups:
        return {}

    def ratio(of: Mapping[Range | None, list[float]]) -> float:
        medians = {reused: statistics.median(values) for reused, values in of.items()}
        return len(policy.ranges) * medians[None] / sum(n * medians[reused] for reused, n in counts.items())

    dice = random.Random(0)
    drawn = sorted(ratio({r: dice.choices(v, k=len(v)) for r, v in groups.items()}) for _ in range(RESAMPLES))
    return {
        "speedup": ratio(groups),
        "low": drawn[round(0.025 * RESAMPLES)],
        "high": drawn[round(0.975 * RESAMPLES) - 1],
        "full_seconds": statistics.median(groups[None]),
        "reuse_seconds": statistics.median([x for r, v in groups.items() if r for x in v] or groups[None]),
        "steps_timed": sum(map(len, groups.values())),
    }
