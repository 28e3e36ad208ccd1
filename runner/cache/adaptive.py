"""Beyond rectangles: the least damaging cut of a run into segments, each with its own refresh and its own blocks.

A segment is a step that computes all blocks and the steps after it that reuse one range of them. The squares of damage
and saved time add up over segments, so dynamic programming over (step, saved time) finds the least damage for every
amount of time at once. Saved time is discretized to keep one state in each bin; what a state has saved is kept exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from runner.cache.policy import Range, Segment, Segments
from runner.cache.predict import Array, Prediction

BINS = 240  # of the time that a run without reuse takes
Ints = NDArray[np.int64]


@dataclass
class _States:
    """The least damaging way to each amount of saved time, of the steps before one; and how the last part came."""

    damage: Array = field(default_factory=lambda: np.full(BINS + 1, math.inf))  # squared
    saved: Array = field(default_factory=lambda: np.zeros(BINS + 1))
    came: Ints = field(default_factory=lambda: np.zeros((BINS + 1, 4), np.int64))  # step, bin, blocks from, to

    def offer(self, damage: Array, saved: Array, came: Ints, width: float) -> None:
        """Take what is less damaging than what its bin holds. damage, saved [n]; came [n, 4]; bins `width` seconds."""
        bins = np.minimum((saved / width).astype(np.int64), BINS)
        order = np.argsort(damage, kind="stable")
        at, first = np.unique(bins[order], return_index=True)
        best = order[first]
        better = damage[best] < self.damage[at]
        at, best = at[better], best[better]
        self.damage[at], self.saved[at], self.came[at] = damage[best], saved[best], came[best]


def front(prediction: Prediction) -> list[tuple[Segments, float]]:
    """Segments and their predicted damage for growing amounts of saved time, each the least damaging for its amount."""
    steps, times = prediction.steps, prediction.times
    width, saves = steps * times.step / BINS, prediction.saves()
    states = [_States() for _ in range(steps + 1)]
    states[0].damage[0] = 0.0
    for t in range(steps):
        bins = np.flatnonzero(np.isfinite(states[t].damage))
        damage, saved = states[t].damage[bins], states[t].saved[bins]
        here = np.stack([np.full(len(bins), t), bins], 1)
        states[t + 1].offer(damage, saved, np.concatenate([here, np.zeros_like(here)], 1), width)
        total = np.zeros_like(prediction.costs[0, 0])
        for reuses in range(1, min(prediction.lags, steps - 1 - t) + 1):
            total = total + prediction.costs[t + reuses, reuses - 1]
            ranges = np.array(list(_undominated(total, saves)), np.int64).reshape(-1, 2)
            s, e = ranges.T
            states[t + 1 + reuses].offer(
                (damage[:, None] + total[s, e] ** 2).ravel(),
                (saved[:, None] + reuses * saves[s, e]).ravel(),
                np.concatenate([np.repeat(here, len(ranges), 0), np.tile(ranges, (len(here), 1))], 1),
                width,
            )
    found: list[tuple[Segments, float]] = []
    lowest, last = math.inf, states[steps]
    for b in np.flatnonzero(np.isfinite(last.damage))[::-1].tolist():
        if last.damage[b] < lowest:
            lowest = float(last.damage[b])
            found.append((_trace(states, b), math.sqrt(lowest)))
    return found[::-1]


def _undominated(damage: Array, saves: Array) -> Iterator[Range]:
    """The ranges [s, e) that no other beats in both: what saves less must damage less. Both are [L+1, L+1]."""
    starts, ends = np.triu_indices(len(damage), 1)
    least = math.inf
    for at in np.lexsort((damage[starts, ends], -saves[starts, ends])):
        s, e = int(starts[at]), int(ends[at])
        if damage[s, e] < least:
            least = float(damage[s, e])
            yield s, e


def _trace(states: list[_States], b: int) -> Segments:
    """The segments on the way back from the end."""
    t, steps, segments = len(states) - 1, len(states) - 1, []
    while t:
        start, before, s, e = states[t].came[b].tolist()
        if e > s:
            segments.append(Segment(start, t - start - 1, s, e - s))
        t, b = start, before
    return Segments(steps, tuple(reversed(segments)))
