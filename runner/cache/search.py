"""Find a policy on a recording, and check it by a few real generations of other noise.

Movement and probes predict the damage of every candidate, measured block times its speed. The best few are run in
latent space, each from the step at which it first differs; what their steps take corrects the predicted times as the
search goes. Whatever the transformer computes on the way is counted.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from runner.cache.adaptive import front
from runner.cache.policy import Config, Policy, Segments
from runner.cache.predict import Prediction
from runner.cache.speed import Times, measured
from runner.cache.trial import Case, Trials
from runner.metrics.video import relative_error

DIFFERENT = 0.05  # share of (step, block) decisions in which a candidate must differ from those that were verified
LEAST = 2  # candidates that must be affordable, from the first step on: prompts are left out before candidates are
SPARE = 1.01  # speed-up to ask of candidates for each that is wanted, for times that vary


def first_kept(policy: Policy) -> int:
    """The first step that has anything to do with reuse; before it, a run is the uncached one."""
    return next((t for t in range(len(policy.ranges)) if policy.kept(t)), len(policy.ranges))


@dataclass(frozen=True)
class Candidate:
    """A configuration with what is predicted of it: damage in relative error of the final latents, speed-up."""

    config: Config
    policy: Policy
    damage: float
    speedup: float


@dataclass(frozen=True)
class Verified:
    """A candidate that was run: its error in each case, and its speed-up as its own steps show it."""

    candidate: Candidate
    errors: list[float]
    speed: dict[str, Any]
    forwards: int

    @property
    def damage(self) -> float:
        return sum(self.errors) / len(self.errors)


@dataclass
class Outcome:
    """What was found: `answer` is the place in `verified` of what is to be applied, None where nothing is; `statement`
    says what it does, or what cannot be had."""

    answer: int | None
    statement: str
    verified: list[Verified] = field(default_factory=list)
    predicted: list[Candidate] = field(default_factory=list)  # the front: nothing is both faster and less damaging


Pool = Callable[[Prediction], list[Candidate]]


def rectangles(prediction: Prediction) -> list[Candidate]:
    """For every speed-up the least damaging rectangle, and some that come near it."""
    steps, blocks = prediction.steps, prediction.blocks
    found = sorted(prediction.rectangles(), key=lambda each: each[1])
    return [Candidate(c, c.policy(steps, blocks), damage, speedup) for c, damage, speedup in _near_front(found)]


def adaptive(prediction: Prediction) -> list[Candidate]:
    """For every speed-up the least damaging segments, predicted with caution; those of a rectangle where bins hide that
    it is the better."""
    prediction = prediction.cautious()
    steps, blocks, times = prediction.steps, prediction.blocks, prediction.times
    found = [
        Candidate(c, policy := c.policy(steps, blocks), damage, times.speedup(policy))
        for c, damage in front(prediction)
    ]
    found += [replace(each, config=Segments.of(each.policy)) for each in pareto(rectangles(prediction))]
    return pareto(found)


def _near_front(found: Iterable[tuple[Any, float, float]], rivals: int = 12) -> list[tuple[Any, float, float]]:
    """Of candidates in the order of damage, those that fewer than `rivals` others beat in speed."""
    kept: list[tuple[Any, float, float]] = []
    fastest: list[float] = []
    for each in found:
        if math.isfinite(each[1]) and (len(fastest) < rivals or each[2] > fastest[0]):
            kept.append(each)
            fastest = sorted([*fastest, each[2]])[-rivals:]
    return kept


def pareto(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Those that no other beats in both damage and speed, the slowest first."""
    kept: list[Candidate] = []
    for each in sorted(candidates, key=lambda c: (-c.speedup, c.damage)):
        if not kept or each.damage < kept[-1].damage:
            kept.append(each)
    return kept[::-1]


def search(
    prediction: Prediction,
    pool: Pool,
    trials: Trials,
    cases: Sequence[Case],
    ratio: float | None,
    quality: float | None,
    budget: int,
) -> Outcome:
    """For a `ratio`: the least damaging verified candidate whose measured speed-up reaches it. For a `quality`: the
    fastest one whose verified damage stays below. `budget` is what verification may compute, in forwards."""
    cases = cases[: max(1, budget // (LEAST * prediction.steps))]
    outcome = Outcome(None, "", predicted=pareto(pool(prediction)))
    verified, scale = outcome.verified, 1.0
    while budget > 0:
        rest = [c for c in pool(prediction) if all(_differs(c.policy, v.candidate.policy) for v in verified)]
        affordable = [c for c in rest if _cost(c.policy, cases) <= budget]
        if ratio is not None:
            fits = [c for c in affordable if c.speedup >= SPARE * ratio]
            chosen = min(fits, key=lambda c: c.damage, default=None)
            if chosen is None and not verified:  # what can be had must be measured, too
                chosen = max(affordable, key=lambda c: c.speedup, default=None)
        else:
            assert quality is not None
            fastest = max((v.candidate.speedup for v in verified if v.damage <= quality), default=1.0)
            fits = [c for c in affordable if c.damage * scale <= quality and c.speedup > fastest]
            chosen = max(fits, key=lambda c: c.speedup, default=None)
        if chosen is None:
            break
        done = [trials.run(case, chosen.policy, first_kept(chosen.policy)) for case in cases]
        errors = [relative_error(one.latents, case.final) for one, case in zip(done, cases, strict=True)]
        speed = measured(chosen.policy, [one.seconds for one in done])
        verified.append(Verified(chosen, errors, speed, sum(one.forwards for one in done)))
        budget -= verified[-1].forwards
        prediction = replace(prediction, times=corrected(prediction.times, verified[-1]))
        ratios = [v.damage / v.candidate.damage for v in verified if v.damage > 0 and v.candidate.damage > 0]
        scale = math.exp(statistics.fmean(map(math.log, ratios))) if ratios else 1.0
    outcome.answer, outcome.statement = answer(verified, ratio, quality)
    return outcome


def corrected(times: Times, verified: Verified) -> Times:
    """Block times scaled so that a verified run is predicted to be as fast as was measured."""
    policy, speed = verified.candidate.policy, verified.speed
    predicted = times.speedup(policy)
    if not speed or speed["speedup"] <= 1 or predicted <= 1:
        return times
    return times.fitted((1 - 1 / speed["speedup"]) / (1 - 1 / predicted))


def answer(verified: Sequence[Verified], ratio: float | None, quality: float | None) -> tuple[int | None, str]:
    """Which of what was verified is to be applied, and in words what it does or what could not be had."""
    timed = [at for at, v in enumerate(verified) if v.speed]

    def faster(at: int) -> float:
        return float(verified[at].speed["speedup"])

    def said(at: int) -> str:
        return f"{faster(at):.3f} times as fast at a latent error of {verified[at].damage:.4f}"

    if ratio is not None:
        if reached := [at for at in timed if faster(at) >= ratio]:
            best = min(reached, key=lambda at: verified[at].damage)
            return best, said(best)
        if not timed:
            return (
                None,
                f"a speed-up of {ratio:g} cannot be reached, and nothing is reused: no candidate could be timed",
            )
        best = max(timed, key=faster)
        return best, f"a speed-up of {ratio:g} was not reached; the fastest that was measured is taken: {said(best)}"
    if good := [at for at in timed if verified[at].damage <= (quality or 0)]:
        best = max(good, key=faster)
        return best, f"{said(best)}, with {quality:g} allowed"
    least = min((verified[at].damage for at in timed), default=None)
    tried = f"; the least that was measured is {least:.4f}" if least is not None else ""
    return None, f"no reuse stays within a latent error of {quality:g}, and nothing is reused{tried}"


def _cost(policy: Policy, cases: Sequence[Case]) -> int:
    """Forwards of a verification."""
    return (len(policy.ranges) - first_kept(policy)) * len(cases)


def _differs(a: Policy, b: Policy) -> bool:
    """Whether two policies decide otherwise for more than a few blocks and steps."""
    other = 0
    for one, two in zip(a.ranges, b.ranges, strict=True):
        first, second = (set(range(*r)) if r else set() for r in (one, two))
        other += len(first ^ second)
    return other > DIFFERENT * max(a.skipped(), b.skipped(), 1)
