"""The dynamic programming against all cuts there are, and against the rectangles."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from support.predictions import prediction

from runner.cache.adaptive import BINS, front
from runner.cache.policy import Policy
from runner.cache.predict import Prediction
from runner.cache.search import adaptive, pareto, rectangles


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
    assert len(found) > 1
    for saved, damage in every_cut(p):
        assert any(s >= saved - p.steps * width and d <= damage + 1e-9 for s, d in found)


def test_the_damage_that_is_told_is_that_of_the_policy():
    p = prediction(12, 4, 3)
    found = list(front(p))
    assert len(found) > 1 and any(damage > 0 for _, damage in found)
    assert [p.damage(config.policy(12, 4)) for config, _ in found] == pytest.approx([damage for _, damage in found])


def test_never_worse_than_a_rectangle():
    p = replace(prediction(20, 5, 4), gains=np.linspace(0.5, 2, 20))
    found, p = adaptive(p), p.cautious()
    for each in pareto(rectangles(p)):
        assert min(c.damage for c in found if c.speedup >= each.speedup - 1e-12) <= each.damage + 1e-12
    at = [min(c.damage for c in pool if c.speedup >= 1.4) for pool in (found, rectangles(p))]
    assert at[0] < 0.8 * at[1]  # here, where every step and range has a damage of its own


def test_no_step_is_taken_to_matter_much_less_than_the_others():
    p = replace(prediction(5, 2, 2), gains=np.array([0.01, 0.1, 1.0, 3.0, 8.0]))
    cautious = p.cautious()
    assert cautious.gains == pytest.approx([4, 4, 4, 4, 8])  # a fifth of the steps have more than 4
    finite = np.isfinite(p.costs)
    expected = (p.costs * np.array([400, 40, 4, 4 / 3, 1])[:, None, None, None])[finite]
    assert cautious.costs[finite] == pytest.approx(expected)
    assert np.array_equal(prediction(5, 2, 2).cautious().costs, prediction(5, 2, 2).costs)
    damages = {c.config: c.damage for c in adaptive(p)}
    assert len(damages) > 1 and all(
        cautious.damage(config.policy(5, 2)) == pytest.approx(damage) for config, damage in damages.items()
    )
