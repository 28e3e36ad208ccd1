"""What a search measures before it predicts: how much of a block's change the prediction sees, and how much of an error
at a step is left in the result. Each probe is a piece of a recorded run with one short reuse in it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from runner.cache.policy import Policy, Range
from runner.cache.predict import Array, Prediction, Probe, gains, local_errors
from runner.cache.speed import Times
from runner.cache.trial import Case, Trials
from runner.metrics.video import relative_error
from runner.movement import Movement

PROBES = (0.15, 0.5, 0.8)  # where, as a share of the steps; and at the last two, which are like no others
BLOCK_PROBES = (0.4, 0.85)  # where each block is probed
GROUPS = 12  # of blocks that are probed as one, at most; fewer where a run is short
SHORT = 0.4375  # groups a step: probes of blocks compute 4 forwards a group
PROBED_STEPS = 3  # that a probe reuses in a row: the error must stand out from the rounding of the model's dtype
FARTHEST = math.log(100)  # of a block's transfer from that of the others: rounding is not to look like one


def probed(steps: int, lags: int) -> list[range]:
    """The steps that each probe reuses. What is left of an error changes most where the run ends, and there a probe
    costs least: the last two steps are probed by themselves."""
    end = max(2, steps - 2)
    firsts = sorted({at for share in PROBES if (at := max(1, round(share * (steps - 1)))) < end})
    early = [
        range(first, min(first + min(PROBED_STEPS, lags), following))
        for first, following in zip(firsts, [*firsts[1:], end], strict=True)
    ]
    return [*early, *(range(step, step + 1) for step in range(end, steps))]


def grouped(blocks: int, steps: int) -> list[Range]:
    """The ranges of blocks that are probed as one."""
    count = max(1, min(blocks, GROUPS, int(SHORT * steps)))
    edges = [round(blocks * n / count) for n in range(count + 1)]
    return list(zip(edges, edges[1:], strict=False))


def transfer(trials: Trials, cases: Sequence[Case], movements: Sequence[Movement]) -> Array:
    """The error in the prediction for a movement of what each block changes, [L], relative to the others; a mean over
    some steps. A probe computes two steps of one recorded prompt, one to keep and a later one that reuses a block."""
    steps, blocks = len(movements[0].gram), movements[0].blocks
    groups, logs = grouped(blocks, steps), np.zeros(blocks)
    for number, share in enumerate(BLOCK_PROBES):
        case, movement = cases[number % len(cases)], movements[number % len(cases)]
        step = max(1, round(share * (steps - 1)))
        lag = min(PROBED_STEPS, movement.lags, step)
        local = local_errors([movement], np.ones(blocks))[step, lag - 1]
        found = []
        for reused in groups:
            policy = Policy(tuple(reused if step - lag < t <= step else None for t in range(steps)))
            done = trials.run(case, policy, step - lag, computed=(step - lag, step), keep=True)
            error = relative_error(done.predictions[step], case.predictions[step])
            found.append(math.log(max(error, 1e-12) / max(float(local[reused]), 1e-12)))
        apart = np.clip(np.array(found) - statistics.median(found), -FARTHEST, FARTHEST)
        logs += np.repeat(apart, [end - start for start, end in groups]) / len(BLOCK_PROBES)
    return np.exp(logs)


def probe(
    trials: Trials, cases: Sequence[Case], movements: Sequence[Movement], times: Times, transfers: Array
) -> tuple[list[Probe], Times]:
    """The gain at some steps: each from one short row of reuses in one recorded prompt, the prompts in turn. Also the
    times, fitted to what those reuses saved."""
    steps, blocks, lags = len(movements[0].gram), movements[0].blocks, movements[0].lags
    middle = (blocks // 6, max(blocks - blocks // 6, blocks // 6 + 1))
    found: list[Probe] = []
    full: list[float] = []
    reuse: list[float] = []
    for number, reused in enumerate(probed(steps, lags)):
        case, movement, step = cases[number % len(cases)], movements[number % len(cases)], reused[0]
        policy = Policy(tuple(middle if t in reused else None for t in range(steps)))
        done = trials.run(case, policy, step - 1)
        for t, seconds in done.seconds.items():
            (reuse if t in reused else full).append(seconds)
        local = local_errors([movement], transfers)
        made = sum(float(local[t, t - step][middle]) for t in reused)
        if made > 0:
            found.append(Probe(reused[len(reused) // 2], relative_error(done.latents, case.final) / made))
    if full and reuse:
        saved = 1 - statistics.median(reuse) / statistics.median(full)
        times = times.fitted(max(saved, 0.01) * times.step / times.saved(middle))
    return found, times


@dataclass(frozen=True)
class Predicted:
    """A prediction and what it was made of: local errors of the tokens [steps, lags, L+1, L+1], what of them is in the
    prediction by block [L], probes, and the gain of each step [steps]."""

    prediction: Prediction
    local: Array
    transfers: Array
    probes: list[Probe]
    gains: Array


def predict(trials: Trials, cases: Sequence[Case], movements: Sequence[Movement], times: Times) -> Predicted:
    """What reuse would cost and gain, by the movement of the recorded `cases` and by probes; `times` are those of the
    recording."""
    transfers = transfer(trials, cases, movements)
    probes, times = probe(trials, cases, movements, times, transfers)
    errors = local_errors(movements, transfers)
    found = gains(probes, len(errors))
    prediction = Prediction(errors * found[:, None, None, None], times)
    return Predicted(prediction, local_errors(movements), transfers, probes, found)
