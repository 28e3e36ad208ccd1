"""What a search measures before it predicts: how much of a block's change the prediction sees, and how much of an error
at a step is left in the result. Each probe is a piece of a recorded run with one short reuse in it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from runner.cache.policy import GENERATIONS, Policy, Range
from runner.cache.predict import Array, Prediction, Probe, Transfers, gains, local_errors
from runner.cache.speed import Times
from runner.cache.trial import Case, Trials
from runner.metrics.video import relative_error
from runner.recording.movement import Movement

PROBES = (0.15, 0.55, 0.77)  # where, as a share of the steps; and at the last steps, which are like no others
LAST = 3  # of them
BLOCK_PROBE = 0.95  # where blocks are probed: late, where reuse does the most harm and stands out from rounding
GROUPS = 12  # of blocks that are probed as one, at most; fewer where a run is short
SHORT = 0.4375  # groups a step: probes of blocks compute 4 forwards a group
PROBED_STEPS = 5  # that a probe reuses in a row: the error must stand out from the rounding of the model's dtype
FARTHEST = math.log(100)  # of a block's transfer from that of the others: rounding is not to look like one
TURNED = 0.25  # relative error of latents that may show another clip; how far apart two clips are is no gain
VERIFIED = 1.5  # generations, of all that a search may compute, that probes leave to verification


def probed(steps: int, lags: int) -> list[range]:
    """The steps that each probe reuses. What is left of an error changes most where the run ends, and there a probe
    costs least: the last steps are probed one by one."""
    end = max(LAST - 1, steps - LAST)
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


def transfer(trials: Trials, cases: Sequence[Case], movements: Sequence[Movement]) -> Transfers:
    """What of each block's movement the prediction sees, when the block is reused alone and when all after it are, too.
    A probe computes two steps of the first recorded prompt, one to keep and the next one, which reuses blocks."""
    case, movement = cases[0], movements[0]
    steps, blocks = len(movement.gram), movement.blocks
    groups, step = grouped(blocks, steps), max(1, round(BLOCK_PROBE * (steps - 1)))

    def error(reused: Range) -> float:
        policy = Policy(tuple(reused if t == step else None for t in range(steps)))
        done = trials.run(case, policy, step - 1, computed=(step - 1, step), keep=True)
        return max(relative_error(done.predictions[step], case.predictions[step]), 1e-12)

    def expected(transfers: Transfers) -> Array:
        """[L+1, L+1]: what reuse of blocks [s, e) at this step would make of the prediction."""
        return np.maximum(local_errors([movement], transfers)[step, 0], 1e-12)

    widths = [end - start for start, end in groups]
    ends = np.repeat([end for _, end in groups], widths)
    plain = Transfers(np.ones(blocks), np.ones(blocks), ends)
    local = expected(plain)
    logs = np.array([math.log(error(group) / local[group]) for group in groups])
    middle = statistics.median(logs)
    alone = replace(plain, alone=np.exp(np.repeat(middle + np.clip(logs - middle, -FARTHEST, FARTHEST), widths)))
    local, rests = expected(alone), [(start, blocks) for start, _ in groups[:-1]]
    together = [*(error(rest) / local[rest] for rest in rests), 1.0]
    return replace(alone, together=np.repeat(together, widths))


def probe(
    trials: Trials, cases: Sequence[Case], movements: Sequence[Movement], times: Times, transfers: Transfers
) -> tuple[list[Probe], Times]:
    """The gain at some steps: each from one short row of reuses in one recorded prompt, the prompts in turn. One that
    shows another clip is made again with the next prompt, as far as a generation goes, and the smaller one counts. Also
    the times, fitted to what those reuses saved."""
    steps, blocks, lags = len(movements[0].gram), movements[0].blocks, movements[0].lags
    middle = (blocks // 6, max(blocks - blocks // 6, blocks // 6 + 1))
    found: list[Probe] = []
    full: list[float] = []
    reuse: list[float] = []
    local = [local_errors([movement], transfers) for movement in movements]
    rows = probed(steps, lags)
    left = int((GENERATIONS - VERIFIED) * steps) - trials.forwards - sum(steps - row[0] + 1 for row in rows)
    spare = min(steps, left)

    def once(number: int, reused: range) -> tuple[float, float]:
        """The error of the result, and what the reuses made of it."""
        policy = Policy(tuple(middle if t in reused else None for t in range(steps)))
        done = trials.run(cases[number], policy, reused[0] - 1)
        for t, seconds in done.seconds.items():
            (reuse if t in reused else full).append(seconds)
        made = sum(float(local[number][t, t - reused[0]][middle]) for t in reused)
        return relative_error(done.latents, cases[number].final), made

    for number, reused in enumerate(rows):
        tried = [once(number % len(cases), reused)]
        again = steps - reused[0] + 1
        if tried[0][0] > TURNED and len(cases) > 1 and again <= spare:
            spare -= again
            tried.append(once((number + 1) % len(cases), reused))
        if known := [error / made for error, made in tried if made > 0]:
            found.append(Probe(reused[len(reused) // 2], min(known)))
    if full and reuse:
        saved = 1 - statistics.median(reuse) / statistics.median(full)
        times = times.fitted(max(saved, 0.01) * times.step / times.saved(middle))
    return found, times


@dataclass(frozen=True)
class Predicted:
    """A prediction and what it was made of: local errors of the tokens [steps, lags, L+1, L+1], what of them is in the
    prediction, and probes."""

    prediction: Prediction
    local: Array
    transfers: Transfers
    probes: list[Probe]


def predict(trials: Trials, cases: Sequence[Case], movements: Sequence[Movement], times: Times) -> Predicted:
    """What reuse would cost and gain, by the movement of the recorded `cases` and by probes; `times` are those of the
    recording."""
    transfers = transfer(trials, cases, movements)
    probes, times = probe(trials, cases, movements, times, transfers)
    errors = local_errors(movements, transfers)
    found = gains(probes, len(errors))
    prediction = Prediction(errors * found[:, None, None, None], times, found)
    return Predicted(prediction, local_errors(movements), transfers, probes)
