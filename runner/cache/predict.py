"""What reuse costs, predicted from a recording: movement at the blocks, times what the model makes of it.

How far the tokens move at a boundary says little by itself: much of it the later blocks never look at. So what each
block changes counts by its transfer, the error in the prediction for a movement of that change, measured by probes that
reuse the block alone. What is left of it depends on the blocks after the range, too: those that are computed make up
for part of the error, those that are reused do not. Probes that reuse all blocks from one on to the last measure how
much more they do together. The weight of an error at a step in the final latents, the gain of that step, is measured,
too: by short rows of reuse, continued to the end. Errors of one period, the steps that reuse what one refresh kept, add
coherently: later ones repeat what earlier ones got wrong. Those of different periods add as squares: each refresh keeps
a change of its own, whose errors have no common direction.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runner.cache.policy import Policy, Rectangle
from runner.cache.speed import Times
from runner.recording.movement import Movement, local_error

Array = NDArray[np.float64]
CAUTION = 0.8  # quantile of the steps' gains that none is taken to be below where a search may choose freely
COMMON = 0.5  # with 1 two blocks that undo each other would cost nothing, with 0 those that act alike too little


@dataclass(frozen=True)
class Transfers:
    """What of a movement is seen in the prediction. alone [L]: its error for a movement of what each block changes,
    where only this block is reused; together [L]: how many times the error of reusing all blocks from this one to the
    last is what follows of those alone; ends [L]: where the group of blocks ends that was probed as one with it."""

    alone: Array
    together: Array
    ends: Array

    def factors(self) -> Array:
        """[L+1, L+1]: what the error of blocks [s, e) is times what follows of each alone. From 1 where the group of s
        is reused, the logarithm runs straight to that of `together` where all that follow are."""
        blocks = len(self.alone)
        rest = np.arange(blocks + 1)[None, :] - self.ends[:, None]
        shares = np.clip(rest / np.maximum(blocks - self.ends, 1)[:, None], 0, 1)
        return np.vstack([self.together[:, None] ** shares, np.ones(blocks + 1)])


def local_errors(movements: Sequence[Movement], transfers: Transfers | None = None) -> Array:
    """[steps, lags, L+1, L+1]: root mean square over the prompts of the local error of reusing blocks [s, e) at step t
    from step t - 1 - lag; infinite where there is no such step. With `transfers` not that of the tokens, but what comes
    of it in the prediction."""
    steps, width, lags = len(movements[0].gram), movements[0].blocks + 1, movements[0].lags
    found = np.full((steps, lags, width, width), math.inf)
    for step, matrices in enumerate(zip(*(m.guided() for m in movements), strict=True)):
        if step:
            seen = matrices if transfers is None else [transferred(matrix, transfers.alone) for matrix in matrices]
            squares = np.mean([local_error(matrix).numpy() ** 2 for matrix in seen], axis=0)
            found[step, : len(squares)] = np.sqrt(squares)
    return found if transfers is None else found * transfers.factors()


def transferred(matrix: Tensor, transfers: Array) -> Tensor:
    """The Gram matrix [..., L+1, L+1] of boundaries as the prediction sees them: with c_j the movement of what block j
    changes, the sum of transfers_i transfers_j <c_i, c_j> over the blocks before both. Of what two blocks have in
    common, the prediction has COMMON in common."""
    own = matrix.diff(dim=-1).diff(dim=-2)
    weights = torch.from_numpy(np.outer(transfers, transfers) * (COMMON + (1 - COMMON) * np.eye(len(transfers))))
    return torch.nn.functional.pad((own * weights).cumsum(-1).cumsum(-2), (1, 0, 1, 0))


@dataclass(frozen=True)
class Probe:
    """A run in which one step reused some blocks: the error of its final latents by the local error that it made."""

    step: int
    gain: float


def gains(probes: Sequence[Probe], steps: int) -> Array:
    """The gain of every step, [steps]: the logarithm runs straight from probe to probe and is level beyond them."""
    ordered = sorted(probes, key=lambda probe: probe.step)
    logs = [math.log(max(probe.gain, 1e-12)) for probe in ordered]
    return np.exp(np.interp(np.arange(steps), [probe.step for probe in ordered], logs))


@dataclass(frozen=True)
class Prediction:
    """Damage and speed of any policy. costs [steps, lags, L+1, L+1]: what each reuse adds to the relative error of the
    final latents that its period makes. gains [steps], all alike by default: what of an error at each step is left in
    them; costs have it."""

    costs: Array
    times: Times
    gains: Array = field(default_factory=lambda: np.ones(1))

    @property
    def steps(self) -> int:
        return self.costs.shape[0]

    @property
    def lags(self) -> int:
        return self.costs.shape[1]

    @property
    def blocks(self) -> int:
        return self.costs.shape[2] - 1

    def cautious(self) -> Prediction:
        """The same with no gain below CAUTION of them. Where little is left of an error, a larger one turns some clips
        into others. The probes of a few clips do not show that, and a search that is free to choose has half a run
        reuse everything."""
        factors = np.maximum(1, np.quantile(self.gains, CAUTION) / self.gains)
        return replace(self, costs=self.costs * factors[:, None, None, None], gains=self.gains * factors)

    def damage(self, policy: Policy) -> float:
        """The predicted error of the final latents; infinite where a reuse reaches back further than was recorded."""
        periods: dict[int, float] = {}
        for step, reused in enumerate(policy.ranges):
            if reused:
                lag = step - (source := policy.source(step))
                cost = float(self.costs[step, lag - 1][reused]) if lag <= self.lags else math.inf
                periods[source] = periods.get(source, 0.0) + cost
        return math.hypot(*periods.values())

    def saves(self) -> Array:
        """[L+1, L+1]: what a step saves by reusing blocks [s, e)."""
        before = np.concatenate([[0.0], np.cumsum(self.times.blocks)])
        return np.asarray(before[None, :] - before[:, None])

    def rectangles(self) -> Iterator[tuple[Rectangle, float, float]]:
        """Every rectangle with its damage and speed-up: all starts, intervals 2 to lags + 1, all ranges of blocks."""
        width = self.blocks + 1
        saved = self.saves()
        full = self.steps * self.times.step
        for interval in range(2, self.lags + 2):
            for start in range(self.steps - 1):
                reused, squares = 0, np.zeros((width, width))
                for source in range(start, self.steps, interval):
                    period = range(source + 1, min(source + interval, self.steps))
                    reused += len(period)
                    squares += sum((self.costs[t, t - source - 1] for t in period), np.zeros_like(squares)) ** 2
                damage, speedup = np.sqrt(squares), full / (full - reused * saved)
                for s in range(width):
                    for e in range(s + 1, width):
                        yield Rectangle(start, interval, s, e - s), float(damage[s, e]), float(speedup[s, e])
