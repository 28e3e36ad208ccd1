"""Align Your Steps (Sabour, Fidler and Kreis, arXiv 2404.14507): timesteps that a stochastic solver deviates least by.

A solver that holds its x0 prediction D from noise level u down to t deviates from the true process by at most

    KLUB = 1/2 sum over steps [l, u]  int_l^u t^-3 E |D(x_t, t) - D(x_u, u)|^2 dt,

x_u being x_t with noise added up to level u (levels as in EDM, x = x0 + t noise). Each node moves in turn to where the
two steps that it bounds deviate least, its neighbors held: one sweep, as msModelSlim's search does it.

The integral is estimated by draws of t whose density is the integrand that normal data of this spread would have,
t^-3 w(t) with w = 1/(t^2 + c^2) - 1/(u^2 + c^2); each draw counts Z |dD|^2 / w, Z being the integral of the density.
Without Z and w, which differ between candidates, it would be another objective.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .probes import CANDIDATES

GRID = 256  # points of each step that the density is summed over


class Denoise(Protocol):
    """The x0 that the model sees in x0 + sigma noise (`state`, [1,C,T,H,W]) for the clean latents of this number."""

    def __call__(self, number: int, state: Tensor, sigma: float, timestep: float) -> Tensor: ...


@dataclass(frozen=True)
class Levels:
    """Noise levels of timesteps: `sigmas` of the whole timesteps 0, 1, ..., ascending; linear between."""

    sigmas: np.ndarray

    def at(self, timestep: float) -> float:
        return float(np.interp(timestep, np.arange(len(self.sigmas)), self.sigmas))

    def timestep(self, sigma: float) -> float:
        return float(np.interp(sigma, self.sigmas, np.arange(len(self.sigmas))))


def density(low: float, middle: float, high: float, spread: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Levels (ascending), the cumulative share of the density up to each, and its integral Z, over the two steps
    [low, middle] and [middle, high]."""
    grids, masses = [], []
    for bottom, top in ((low, middle), (middle, high)):
        grid = np.geomspace(bottom, top, GRID)
        masses.append(grid**-3 * weight(grid, top, spread))
        grids.append(grid)
    areas = [np.diff(grid) * (mass[1:] + mass[:-1]) / 2 for grid, mass in zip(grids, masses, strict=True)]
    total = np.concatenate([[0.0], np.cumsum(np.concatenate(areas))])
    return np.concatenate([grids[0], grids[1][1:]]), total / total[-1], float(total[-1])


def weight(t: np.ndarray | float, u: float, spread: float) -> np.ndarray | float:
    """E |D(x_t, t) - D(x_u, u)|^2 of normal data of standard deviation `spread`, up to a constant factor."""
    return 1 / (np.square(t) + spread**2) - 1 / (u**2 + spread**2)


def deviation(
    timesteps: tuple[float, float, float],
    levels: Levels,
    clean: Sequence[Tensor],
    denoise: Denoise,
    iters: int,
    seed: int,
) -> float:
    """The two steps' part of KLUB (without its factor 1/2), estimated from `iters` draws; the same seed, the same draws
    of x0, place and noise, so that candidates differ by nothing else."""
    low, middle, high = (levels.at(t) for t in timesteps)
    spread = float(torch.stack([each.double().square().mean() for each in clean]).mean()) ** 0.5
    grid, share, integral = density(low, middle, high, spread)
    generator, total = torch.Generator("cpu").manual_seed(seed), 0.0
    for number in range(iters):
        which = number % len(clean)
        x0 = clean[which]
        place = float(torch.rand((), generator=generator))
        noise, more = (torch.randn(x0.shape, generator=generator) for _ in range(2))
        t = float(np.interp(place, share, grid))
        upper, upper_step = (middle, timesteps[1]) if t <= middle else (high, timesteps[2])
        x_t = x0.float() + t * noise
        x_u = x_t + max(upper**2 - t**2, 0.0) ** 0.5 * more
        change = denoise(which, x_t, t, levels.timestep(t)) - denoise(which, x_u, upper, upper_step)
        total += float(change.double().square().sum()) / max(float(weight(t, upper, spread)), 1e-30)
    return integral * total / iters


def neighbors(timesteps: Sequence[float], place: int, kind: str, seed: int) -> list[float]:
    """Candidates for one timestep of an ascending list, its own value among them: `uniform` between its neighbors, or
    `random` around it."""
    low, here, high = timesteps[place - 1], timesteps[place], timesteps[place + 1]
    count = CANDIDATES - 1
    if kind == "uniform":
        return [here, *np.linspace(low, high, count + 2)[1:-1].tolist()]
    rng, found = np.random.default_rng(seed), [here]
    while len(found) <= count:
        drawn = float(rng.normal(here, (high - low) / 4))
        if low < drawn < high:
            found.append(drawn)
    return found


def moved(
    timesteps: Sequence[float],
    place: int,
    levels: Levels,
    clean: Sequence[Tensor],
    denoise: Denoise,
    kind: str,
    iters: int,
    seed: int,
) -> float:
    """Where the timestep at `place` of an ascending list is best, the others held.

    clean: x0 latents [1,C,T,H,W], scaled as the model takes them. The model is evaluated 2 * CANDIDATES * iters times.
    """
    tried = neighbors(timesteps, place, kind, seed + place)
    around = [(timesteps[place - 1], candidate, timesteps[place + 1]) for candidate in tried]
    costs = [deviation(three, levels, clean, denoise, iters, seed + place) for three in around]
    return tried[int(np.argmin(costs))]


def align(timesteps: Sequence[float], move: Callable[[Sequence[float], int], float]) -> list[float]:
    """Descending timesteps of the same ends, each of the others moved once, from the lowest up, to where `move` has it
    by the ascending list as it is by then, and its place there."""
    found = sorted(timesteps)
    for place in range(1, len(found) - 1):
        found[place] = move(found, place)
    return found[::-1]
