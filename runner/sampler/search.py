"""Search a schedule of K steps in a recording of N: what a jump costs, what becomes of an error, which nodes to keep.

The arithmetic is in jumps.py and dynamic.py. The model is run for two things only, and both are counted: to measure
how much of an error at a node is left in the result (probes.py says where), and to try what is best on paper.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from . import probes
from .dynamic import exchange, shortest
from .jumps import Jumps, gram, scale, x0_of
from .methods import SOLVERS
from .schedules import TRAINED_STEPS
from .solvers import sigmas_at

DOUBT = 2.0  # times the least error of those tried


@dataclass(frozen=True)
class Walked:
    """A run of the solver: its timesteps, the latents before each step as the scheduler keeps them, and the result."""

    timesteps: list[float]
    states: list[Tensor]
    result: Tensor


class Walk(Protocol):
    """Runs the solver on one recorded prompt over `timesteps` (None: its own), from the prompt's noise or from
    `latents` [1,C,T,H,W] at the first one."""

    def __call__(self, prompt: int, timesteps: Sequence[float] | None, latents: Tensor | None = None) -> Walked: ...


@dataclass(frozen=True)
class Recorded:
    """What one recorded prompt says: x0 predictions [N, elements] (float32) and the norm of its result."""

    predictions: Tensor
    norm: float


class Trajectories:
    """Recorded runs of one solver over the same nodes: `timesteps` [N], descending."""

    def __init__(self, method: str, scheduler: Any) -> None:
        if method not in SOLVERS:
            raise ValueError(f"no schedule can be searched for {method}; only for one of {', '.join(SOLVERS)}")
        self.solver = SOLVERS[method]
        self.scheduler = scheduler
        self.timesteps: list[float] = []
        self.runs: list[Recorded] = []

    @property
    def sigmas(self) -> list[float]:
        """Noise levels of the nodes, of x0 + sigma noise."""
        if self.solver.space == "flow":
            return [t / (TRAINED_STEPS - t) if t < TRAINED_STEPS else math.inf for t in self.timesteps]
        return [float(s) for s in sigmas_at(self.scheduler.alphas_cumprod, np.array(self.timesteps, np.float32))]

    def add(self, steps: Iterable[Any], final: Tensor) -> None:
        """Take in a trajectory (recording.Step) and its result; ValueError on other nodes than the first's."""
        taken = list(steps)
        timesteps = [step.timestep for step in taken]
        if self.runs and timesteps != self.timesteps:
            raise ValueError("the recorded prompts do not have the same timesteps")
        self.timesteps = timesteps
        kind = self.solver.predicts or self.scheduler.config.prediction_type
        predictions = [
            x0_of(step.latents, step.prediction, sigma, kind, self.solver.space).flatten()
            for step, sigma in zip(taken, self.sigmas, strict=True)
        ]
        self.runs.append(Recorded(torch.stack(predictions), float(final.double().norm())))
        self.shape = final.shape

    def jumps(self, gains: Sequence[float] | None = None) -> Jumps:
        """The mean over the runs, each relative to its result; without gains every error is kept as it is."""
        products = torch.stack([gram(run.predictions) / run.norm**2 for run in self.runs]).mean(0)
        n = len(self.timesteps)
        kept = torch.ones(n + 1, dtype=torch.float64) if gains is None else torch.tensor(gains, dtype=torch.float64)
        return Jumps(self.sigmas, products, kept, self.solver.family)

    def scale(self, node: int) -> float:
        """Latents per x0 + sigma noise at a node."""
        return scale(self.solver.space, self.sigmas[node])


@dataclass(frozen=True)
class Gain:
    """A continuation: where an error was added, on which prompt, its size relative to the result, and what share of it
    was left in the result."""

    node: int
    prompt: int
    size: float
    gain: float


def measure_gains(runs: Trajectories, walk: Walk) -> list[Gain]:
    """What becomes of errors such as jumps make, measured at a few nodes; the prompts take turns.

    Each is the error of a jump over the coarse run's last step, taken from the recording, so that it points where real
    ones do."""
    jumps, nodes = runs.jumps(), probes.coarse(len(runs.timesteps))
    plain: dict[int, Walked] = {}
    found = []
    for number, place in enumerate(probes.places(len(runs.timesteps))):
        prompt, node = number % len(runs.runs), nodes[place]
        timesteps = [runs.timesteps[n] for n in nodes]
        if prompt not in plain:
            plain[prompt] = walk(prompt, timesteps)
        state, result = plain[prompt].states[place], plain[prompt].result
        weights = jumps.weights(nodes[place - 1], node, None).float()
        error = runs.scale(node) * (weights @ runs.runs[prompt].predictions).reshape(runs.shape)
        other = walk(prompt, timesteps[place:], state.float() + error.to(state.device))
        added = (other.states[0].double() - state.double()).norm() / runs.scale(node)  # after rounding
        left = (other.result.double() - result.double()).norm()
        norm = runs.runs[prompt].norm
        found.append(Gain(node, prompt, float(added / norm), float(left / added)))
    return found


def gains_of_all(measured: Sequence[Gain], steps: int) -> list[float]:
    """The gain at each of the nodes and at the end (1): between measured ones their logarithm is linear."""
    known = [(gain.node, math.log(max(gain.gain, 1e-6))) for gain in measured] + [(steps, 0.0)]
    filled = []
    for node in range(steps + 1):
        after = next(k for k, (place, _) in enumerate(known) if place >= node)
        if after == 0:
            filled.append(math.exp(known[0][1]))
            continue
        (a, low), (b, high) = known[after - 1], known[after]
        filled.append(math.exp(low + (high - low) * (node - a) / (b - a)))
    return filled


@dataclass(frozen=True)
class Candidate:
    """A schedule: how it was found, its timesteps (descending), and its error as predicted, where it was."""

    name: str
    timesteps: list[float]
    predicted: float | None = None


def choose(errors: Sequence[float]) -> int:
    """Which of the schedules that were tried is the answer, by their errors; the best on paper comes first.

    On one clip an error varies several-fold, because where a run turns another way is luck, and the paper speaks for
    more than one: its order holds but for a schedule that is more than DOUBT times as far off as the closest.
    """
    return next(place for place, error in enumerate(errors) if error <= DOUBT * min(errors))


def candidates(runs: Trajectories, gains: Sequence[float], count: int) -> list[Candidate]:
    """At most one less than `probes.TRIED` different schedules of `count` steps, the best on paper first."""
    jumps = runs.jumps(gains)
    independent, alike = shortest(jumps, count, 2), shortest(jumps, count, 1)
    together = exchange(jumps, min(independent, alike, key=jumps.damage))
    names = {tuple(independent): "errors are independent", tuple(together): "errors as they point"}
    ranked = sorted(names, key=jumps.damage)[: probes.TRIED - 1]
    return [Candidate(names[n], [runs.timesteps[i] for i in n], jumps.damage(n)) for n in ranked]
