"""What the search verifies and answers, on a model that is a formula; and the original's two stages."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.predictions import prediction

from runner.cache import probes, search
from runner.cache.exhaustive import at_most, exhaustive, least_length
from runner.cache.policy import GENERATIONS, Policy, Rectangle
from runner.cache.predict import Prediction, Probe, Transfers, gains, local_errors
from runner.cache.speed import Times, measured
from runner.cache.trial import Case
from runner.recording.movement import Movement

STEPS, BLOCKS = 20, 5
CASES = [Case("a", 1, torch.ones(1), {}), Case("b", 2, torch.ones(1), {})]


class Formula:
    """Trials whose damage is `harm` times the prediction, and whose blocks take `share` of what was thought."""

    def __init__(self, p: Prediction, harm: float = 1.0, share: float = 1.0) -> None:
        self.prediction, self.harm, self.forwards, self.ran = p, harm, 0, []
        self.times = p.times.fitted(share)

    def run(self, case: Case, policy: Policy, computed_from: int):
        assert computed_from == search.first_kept(policy)
        self.ran.append(policy)
        self.forwards += STEPS - computed_from
        seconds = {t: 1.0 - self.times.saved(policy.ranges[t]) for t in range(computed_from + 1, STEPS)}
        error = self.harm * self.prediction.damage(policy)
        return SimpleNamespace(latents=case.final * (1 + error), seconds=seconds, forwards=STEPS - computed_from)


def find(pool, ratio=None, quality=None, budget=6 * STEPS, **formula):
    p = prediction(STEPS, BLOCKS, 4)
    trials = Formula(p, **formula)
    return p, trials, search.search(p, pool, trials, CASES, ratio, quality, budget)


@pytest.mark.parametrize("pool", [search.rectangles, search.adaptive])
def test_the_answer_reaches_the_ratio_at_the_least_damage(pool):
    p, trials, outcome = find(pool, ratio=1.3)
    best = outcome.verified[outcome.answer]
    assert best.speed["speedup"] >= 1.3 and trials.forwards <= 6 * STEPS
    least = min(c.damage for c in pool(p) if c.speedup >= search.SPARE * 1.3)
    assert best.candidate.damage == pytest.approx(least) and best.damage == pytest.approx(least, rel=1e-3)
    assert len({v.candidate.policy for v in outcome.verified}) == len(outcome.verified)


def test_times_that_were_wrong_are_corrected():
    _, _, outcome = find(search.rectangles, ratio=1.3, share=0.8)
    assert outcome.verified[0].speed["speedup"] < 1.3 <= outcome.verified[outcome.answer].speed["speedup"]


def test_what_cannot_be_reached_is_said_with_what_can():
    _, _, outcome = find(search.rectangles, ratio=1.9, share=0.3)
    fastest = max(v.speed["speedup"] for v in outcome.verified)
    assert outcome.verified[outcome.answer].speed["speedup"] == fastest < 1.9
    assert outcome.statement.startswith("a speed-up of 1.9 was not reached") and f"{fastest:.3f}" in outcome.statement


@pytest.mark.parametrize("harm", [0.3, 1.0, 2.0])
def test_auto_is_the_fastest_that_stays_below_the_bound(harm):
    p, _, outcome = find(search.rectangles, quality=20.0, harm=harm)
    best = outcome.verified[outcome.answer]
    assert best.damage <= 20.0
    possible = max(c.speedup for c in search.rectangles(p) if harm * c.damage <= 20.0)
    assert best.speed["speedup"] > 1 + 0.8 * (possible - 1)


def test_a_bound_that_nothing_keeps_is_said():
    _, trials, outcome = find(search.rectangles, quality=1e-9)
    assert outcome.answer is None and "nothing is reused" in outcome.statement and not trials.ran


def test_no_verification_beyond_the_budget():
    _, trials, outcome = find(search.rectangles, ratio=1.3, budget=10)
    assert trials.forwards <= 10 and "was not reached" in outcome.statement


def test_prompts_are_left_out_where_they_would_leave_one_candidate():
    _, _, outcome = find(search.rectangles, ratio=1.3, budget=3 * STEPS)
    assert len(outcome.verified) > 1 and {len(v.errors) for v in outcome.verified} == {1}


@pytest.mark.parametrize("steps", [2, 3, 8, 30, 100])
def test_probes_lie_apart_and_the_last_steps_have_their_own(steps):
    found = probes.probed(steps, 5)
    assert all(before[-1] < after[0] for before, after in zip(found, found[1:], strict=False))
    assert found[0][0] >= 1 and found[-1][-1] == steps - 1 and len(found) <= 6
    assert steps < 5 or found[-3:] == [range(step, step + 1) for step in range(steps - 3, steps)]
    assert sum(steps - reused[0] + 1 for reused in found) <= GENERATIONS / 2 * steps  # what they compute


def test_a_clip_that_turned_into_another_is_no_gain():
    """One recorded prompt of two answers every reuse with another clip, the other with an error of 0.01."""
    boundaries = torch.arange(BLOCKS + 1.0)
    gram = torch.minimum(boundaries[:, None], boundaries[None, :]).double()[None, None, None]
    movement = Movement([torch.empty(0), *[gram] * (STEPS - 1)], [torch.ones(1, dtype=torch.float64)] * STEPS)
    ran: list[str] = []

    def run(case: Case, policy: Policy, computed_from: int):
        ran.append(case.prompt)
        error = 0.7 if case.prompt == "a" else 0.01
        return SimpleNamespace(latents=case.final * (1 + error), seconds={})

    transfers = Transfers(np.ones(BLOCKS), np.ones(BLOCKS), np.arange(1, BLOCKS + 1))
    trials, times = SimpleNamespace(run=run, forwards=0), Times(1.0, (0.1,) * BLOCKS)
    found, _ = probes.probe(trials, CASES, [movement] * 2, times, transfers)
    made = float(local_errors([movement], transfers)[1, 0][0, BLOCKS])
    rows = [STEPS - row[0] + 1 for row in probes.probed(STEPS, 1)]  # what each computes
    assert ran[:2] == ["a", "b"] and found[0].gain == pytest.approx(0.01 / made, rel=1e-4)
    again = [cost for cost, one in zip(rows[::2], found[::2], strict=True) if one.gain * made < 0.02]
    assert len(ran) == len(rows) + len(again) and sum(again) <= STEPS  # one generation, and no more
    ran.clear()
    trials.forwards = int((GENERATIONS - probes.VERIFIED) * STEPS) - sum(rows)  # nothing to spare
    probes.probe(trials, CASES, [movement] * 2, times, transfers)
    assert len(ran) == len(rows)


@pytest.mark.parametrize(("steps", "blocks"), [(2, 1), (12, 12), (30, 12), (30, 57), (100, 32)])
def test_groups_of_blocks_cover_them_and_cost_less_than_two_generations(steps, blocks):
    found = probes.grouped(blocks, steps)
    assert [b for group in found for b in range(*group)] == list(range(blocks))
    assert 4 * len(found) <= max(4, 1.75 * steps)


def test_gains_run_straight_between_probes_in_logarithm():
    found = gains([Probe(8, 4.0), Probe(4, 1.0)], 12)
    assert found[4] == pytest.approx(1) and found[6] == pytest.approx(2) and found[0] == 1 and found[11] == 4


def test_a_measured_speed_is_that_of_the_medians():
    policy = Rectangle(0, 2, 0, 1).policy(6, 2)
    run = {1: 0.5, 2: 1.0, 3: 0.5, 4: 9.0, 5: 0.5}
    found = measured(policy, [run, {**run, 4: 1.0}])
    assert found["speedup"] == pytest.approx(6 / (3 + 1.5)) and found["low"] <= found["speedup"] <= found["high"]
    assert measured(policy, [{1: 0.5, 3: 0.5}]) == {}


def test_fitted_times_cannot_exceed_the_step():
    assert sum(Times(1.0, (0.5, 0.4)).fitted(2.0).blocks) == pytest.approx(1)


def test_the_originals_length():
    assert least_length(100, 32, 1.3, 2) == 15  # as its release 26.1 has it
    for ratio in (1.001, 2.0):
        with pytest.raises(ValueError, match="at least one and fewer than all"):
            least_length(100, 32, ratio, 2)


def test_the_originals_two_stages():
    tried = []

    def score(r: Rectangle) -> float:
        tried.append(r)
        return abs(r.block_start - 9) + r.num_blocks + (r.step_start == 0)

    found = exhaustive(100, 32, 1.3, 2, score)
    assert [r.block_start for r in tried[:16]] == list(range(1, 17)) and {r.step_start for r in tried[:16]} == {5}
    assert found.answer == Rectangle(5, 2, 9, 15) and len(tried) == len(set(tried)) <= at_most(100, 32, 1.3, 2)
    assert {r.block_start for r in tried[16:]} == {8, 9, 10} and max(r.num_blocks for r in tried) == 22
    assert math.isclose(found.score, 15)
