"""The dynamic programming against all cuts there are, and against the rectangles."""

import itertools
import math

import numpy as np
import pytest

from runner.cache.adaptive import BINS, front
from runner.cache.policy import Policy
from runner.cache.predict import Prediction
from runner.cache.search import adaptive, pareto, rectangles
from runner.cache.speed import Times


def prediction(steps: int, blocks: int, lags: int, seed: int = 0) -> Prediction:
    dice = np.random.default_rng(seed)
    costs = dice.uniform(0.1, 1, (steps, lags, blocks + 1, blocks + 1)).cumsum(1)
    for step, lag in itertools.product(range(steps), range(lags)):
        if lag >= step:
            costs[step, lag] = math.inf
    return Prediction(costs, Times(1.0, tuple(dice.uniform(0.5, 1, blocks) / (blocks + 1))))


def every_cut(p: Prediction):
    """All policies of segments: (saved, damage)."""
    ranges = list(itertools.combinations(range(p.blocks + 1), 2))

    def rest(step: int):
        if step >= p.steps:
            yield ()
            return
        for tail in rest(step + 1):
            yield (None, *tail)
        for reuses in range(1, min(p.lags, p.steps - 1 - step) + 1):
            for reused in ranges:
                for tail in rest(step + 1 + reuses):
                    yield (None, *[reused] * reuses, *tail)

    for ranges_ in set(rest(0)):
        policy = Policy(ranges_)
        yield sum(map(p.times.saved, policy.ranges)), p.damage(policy)


@pytest.mark.parametrize("seed", range(3))
def test_no_cut_is_better_by_more_than_a_bin(seed):
    p = prediction(5, 2, 2, seed)
    found = [(sum(map(p.times.saved, c.policy(5, 2).ranges)), damage) for c, damage in front(p)]
    width = p.steps * p.times.step / BINS
    for saved, damage in every_cut(p):
        assert any(s >= saved - p.steps * width and d <= damage + 1e-9 for s, d in found)


def test_the_damage_that_is_told_is_that_of_the_policy():
    p = prediction(12, 4, 3)
    for config, damage in front(p):
        assert p.damage(config.policy(12, 4)) == pytest.approx(damage)


def test_never_worse_than_a_rectangle():
    p = prediction(20, 5, 4)
    found = adaptive(p)
    for each in pareto(rectangles(p)):
        assert min(c.damage for c in found if c.speedup >= each.speedup - 1e-12) <= each.damage + 1e-12
    at = [min(c.damage for c in pool if c.speedup >= 1.4) for pool in (found, rectangles(p))]
    assert at[0] < 0.8 * at[1]  # here, where every step and range has a damage of its own
