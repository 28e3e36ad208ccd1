"""What reuse costs, predicted from a recording: movement at the blocks, times what the trajectory makes of it.

The local error of reusing blocks at a step is read from the Gram matrices of the guided combination (runner.movement).
Its weight in the final latents, the gain of that step, is measured by probes: single steps of reuse, continued to the
end. Errors of one run add coherently: later steps repeat what earlier ones got wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runner.cache.policy import Policy, Rectangle
from runner.cache.speed import Times
from runner.movement import Movement, local_error

Array = NDArray[np.float64]


def local_errors(movements: Sequence[Movement]) -> Array:
    """[steps, lags, L+1, L+1]: root mean square over the prompts of the local error of reusing blocks [s, e) at step t
    from step t - 1 - lag; infinite where there is no such step."""
    steps, width, lags = len(movements[0].gram), movements[0].blocks + 1, movements[0].lags
    found = np.full((steps, lags, width, width), math.inf)
    for step, matrices in enumerate(zip(*(m.guided() for m in movements), strict=True)):
        if step:
            squares = np.mean([local_error(matrix).numpy() ** 2 for matrix in matrices], axis=0)
            found[step, : len(squares)] = np.sqrt(squares)
    return found


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
    final latents."""

    costs: Array
    times: Times

    @property
    def steps(self) -> int:
        return self.costs.shape[0]

    @property
    def lags(self) -> int:
        return self.costs.shape[1]

    @property
    def blocks(self) -> int:
        return self.costs.shape[2] - 1

    def damage(self, policy: Policy) -> float:
        """The predicted error of the final latents; infinite where a reuse reaches back further than was recorded."""
        total = 0.0
        for step, reused in enumerate(policy.ranges):
            if reused:
                lag = step - policy.source(step)
                total += float(self.costs[step, lag - 1][reused]) if lag <= self.lags else math.inf
        return total

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
                reused = [t for t in range(start, self.steps) if (t - start) % interval]
                damage = sum(self.costs[t, (t - start) % interval - 1] for t in reused)
                speedup = full / (full - len(reused) * saved)
                for s in range(width):
                    for e in range(s + 1, width):
                        yield Rectangle(start, interval, s, e - s), float(damage[s, e]), float(speedup[s, e])
