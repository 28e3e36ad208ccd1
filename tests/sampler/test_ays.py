"""Align Your Steps on data whose denoiser is known: the objective is then an integral that can be written down."""

from functools import partial

import numpy as np
import pytest
import torch

from runner.sampler import ays
from runner.sampler.probes import CANDIDATES

SPREAD, SHAPE = 0.7, (1, 4, 2, 6, 6)
LEVELS = ays.Levels(np.geomspace(0.01, 100, 1000))


def clean(count=40):
    generator = torch.Generator().manual_seed(0)
    return [SPREAD * torch.randn(SHAPE, generator=generator) for _ in range(count)]


def denoise(number, state, sigma, timestep):
    """Of independent normal data: D = c^2 / (c^2 + t^2) x."""
    assert timestep == pytest.approx(LEVELS.timestep(sigma), abs=1e-6)
    return state * SPREAD**2 / (SPREAD**2 + sigma**2)


def exact(low, high):
    """int t^-3 E |D(x_t) - D(x_u)|^2 dt over a step of this data, by a fine sum."""
    t = np.geomspace(low, high, 200_000)
    values = t**-3 * SPREAD**4 * (1 / (t**2 + SPREAD**2) - 1 / (high**2 + SPREAD**2))
    return float(np.sum(np.diff(t) * (values[1:] + values[:-1]) / 2)) * int(np.prod(SHAPE))


@pytest.mark.parametrize("three", [(100.0, 300.0, 500.0), (300.0, 350.0, 900.0)])
def test_the_estimate_is_the_integral(three):
    low, middle, high = (LEVELS.at(t) for t in three)
    found = ays.deviation(three, LEVELS, clean(), denoise, 160, seed=1)
    assert found == pytest.approx(exact(low, middle) + exact(middle, high), rel=0.1)


def test_nodes_move_to_where_the_integral_is_least():
    start = [900.0, 880.0, 500.0, 300.0, 100.0]
    moved = partial(ays.moved, levels=LEVELS, clean=clean(8), denoise=denoise, kind="uniform", iters=8, seed=0)
    found = ays.align(start, moved)
    assert found[0] == 900 and found[-1] == 100 and found == sorted(found, reverse=True)

    def whole(timesteps):
        stops = [LEVELS.at(t) for t in reversed(timesteps)]
        return sum(exact(a, b) for a, b in zip(stops, stops[1:], strict=False))

    assert whole(found) < 0.8 * whole(start)


def test_the_model_is_evaluated_as_often_as_planned():
    calls = 0

    def counting(*arguments):
        nonlocal calls
        calls += 1
        return denoise(*arguments)

    moved = partial(ays.moved, levels=LEVELS, clean=clean(2), denoise=counting, kind="random", iters=3, seed=0)
    ays.align([900.0, 500.0, 300.0, 100.0], moved)
    assert calls == 2 * 2 * CANDIDATES * 3


@pytest.mark.parametrize("kind", ["uniform", "random"])
def test_candidates_lie_between_the_neighbors_and_have_the_present_one(kind):
    found = ays.neighbors([10.0, 40.0, 90.0], 1, kind, seed=4)
    assert len(found) == CANDIDATES and found[0] == 40 and all(10 < each < 90 for each in found)
    assert found == ays.neighbors([10.0, 40.0, 90.0], 1, kind, seed=4)
    if kind == "random":
        assert found != ays.neighbors([10.0, 40.0, 90.0], 1, kind, seed=5)
