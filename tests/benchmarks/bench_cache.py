"""What reuse of blocks reaches on the shipped weights: ranking, speed, damage, and what the searches spend.

    python tests/benchmarks/bench_cache.py                    all of it
    python tests/benchmarks/bench_cache.py ranking answers    parts by name: off, ranking, answers, counts
    python tests/benchmarks/bench_cache.py answers model=opensora12 seed=7
                                                              another model, another recording: what the runner takes
    python tests/benchmarks/bench_cache.py --short            the same in small: that it runs; its figures mean little
    MSMODELSLIM_PYTHON=... python tests/benchmarks/bench_cache.py answers
                                                              also msModelSlim's own search, of the package that this
                                                              interpreter has, on the same pipeline and prompts

The recording is made by the runner itself. Damage is the relative error of the final latents on held-out prompts and
seeds. Speed is that of the denoising loop on one thread: arms in turn, process CPU time, the ratio of medians with its
95 % interval by the bootstrap. Every forward of the transformer is counted; a guided pair is one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from processor_line import say_processor
from scipy.stats import spearmanr
from torch import Tensor

from runner.bench.context import Bench
from runner.cache import exhaustive, probes, search
from runner.cache.policy import GENERATIONS, Config, Policy, Rectangle
from runner.cache.predict import Prediction
from runner.cache.reuse import Reuse
from runner.cache.speed import Times
from runner.cache.trial import Case, Replay, Trials
from runner.embedded import world
from runner.embedded.training.scores import spread
from runner.generation.generate import generate
from runner.generation.steps import Steps
from runner.hardware import open_device
from runner.metrics.video import relative_error
from runner.recording.movement import Movement
from runner.recording.recording import Recording

RATIOS = (1.3, 1.5)
TARGETS = (1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7)  # predicted speed of each group of the ranking
WITHIN = 0.01  # of its target, to either side
HELD_OUT_SEED = 5_000_000
SHUFFLES = 20  # of the recording's steps: with none of them may the ranking pass


@dataclass(frozen=True)
class Scale:
    """How much is done: held-out prompts, configurations of a group, rounds of the race, arguments of the recording."""

    held_out: int
    group: int
    rounds: int
    targets: tuple[float, ...] = TARGETS
    ratios: tuple[float, ...] = RATIOS
    arguments: tuple[str, ...] = ()


FULL = Scale(16, 10, 15)
SHORT = Scale(2, 4, 2, (1.2, 1.5), (1.3,), ("sampler.num_sampling_steps=12",))


@dataclass(frozen=True)
class Clips:
    """Some prompts with their noise, their final latents [N,C,T,H,W] and predictions of the same shape by step."""

    prompts: list[str]
    seeds: list[int]
    final: Tensor
    predictions: dict[int, Tensor]
    frames: Tensor = field(default_factory=lambda: torch.empty(0))  # uint8 [N,T,H,W,3], where they were asked for


class Lab:
    """A recording, the pipeline, and the truth about any policy on held-out prompts."""

    def __init__(self, folder: Path, scale: Scale) -> None:
        command = [sys.executable, "-m", "runner", "cache=dit_cache", "cache.ratio=1.3", "until=dump", "name=bench"]
        command += ["sample.compare=false"]
        subprocess.run([*command, f"output={folder}", *scale.arguments], check=True, stdout=sys.stderr)
        run = max((folder / "bench").iterdir(), key=lambda path: path.stat().st_mtime_ns)
        self.scale, self.config = scale, json.loads((run / "run.json").read_text())["config"]
        self.pipeline = Bench().pipeline(self.config)
        self.recording = recording = Recording(run / "dump")
        self.movements = [Movement.read(part) for part in recording.parts("calibration")]
        self.steps, self.blocks = len(self.movements[0].gram), self.movements[0].blocks
        self.recorded, self.verification = (cases(recording, role) for role in ("calibration", "verification"))
        timed = json.loads((run / "measurements" / "dump.json").read_text())["blocks"]
        self.times = Times(timed["step_seconds"], tuple(timed["block_seconds"]))
        self._errors: dict[Policy, list[float]] = {}

    def trials(self) -> Trials:
        return Trials(self.pipeline, self.config, open_device("cpu"))

    @cached_property
    def held_out(self) -> Clips:
        """Prompts that the recording has not, generated without reuse, all in one batch."""
        used = {prompt["prompt"] for prompt in self.recording.prompts}
        motions = world.motions_of(self.config["model"]["name"])
        prompts = [each for each in spread("all", self.scale.held_out + len(used), 7, motions) if each not in used]
        prompts = prompts[: self.scale.held_out]
        clips = Clips(prompts, [HELD_OUT_SEED + place for place in range(len(prompts))], torch.empty(0), {})
        return self.made(clips, Policy((None,) * self.steps), 0)

    def made(self, clips: Clips, policy: Policy, computed_from: int, decode: bool = False) -> Clips:
        """The same clips under a policy; the steps before `computed_from` take their predictions."""
        found: dict[int, Tensor] = {}
        with Steps(self.pipeline) as steps:
            steps.before.append(lambda at, _t, _x, prediction: found.__setitem__(at, prediction))
            with (
                Replay(self.pipeline, steps, clips.predictions, range(computed_from)),
                Reuse(self.pipeline.transformer, steps, policy),
            ):
                device = open_device("cpu")
                done = generate(
                    self.pipeline, self.config, clips.prompts, clips.seeds, device, decode=decode, steps=steps
                )
        return replace(clips, final=done.latents, predictions=found, frames=done.frames)

    def errors(self, policy: Policy) -> list[float]:
        """The relative error of the final latents of each held-out prompt."""
        if policy not in self._errors:
            found = self.made(self.held_out, policy, search.first_kept(policy)).final
            self._errors[policy] = list(map(relative_error, found, self.held_out.final))
        return self._errors[policy]

    def damage(self, policy: Policy) -> float:
        """Their mean."""
        return statistics.fmean(self.errors(policy))

    @cached_property
    def predicted(self) -> tuple[probes.Predicted, int]:
        """The prediction that a search would make, and the forwards of its probes."""
        trials = self.trials()
        return probes.predict(trials, self.recorded, self.movements, self.times), trials.forwards


def cases(recording: Recording, role: str) -> list[Case]:
    told = {recording.folder / prompt["folder"]: prompt for prompt in recording.prompts}
    return [
        Case(told[part]["prompt"], told[part]["seed"], recording.final(part), recording.predictions(part))
        for part in recording.parts(role)
    ]


def off(lab: Lab) -> bool:
    """Without any reuse, hooks or none, the bytes are those of the recording."""
    case = lab.recorded[0]
    with Steps(lab.pipeline) as steps, Reuse(lab.pipeline.transformer, steps, Policy((None,) * lab.steps)):
        idle = generate(lab.pipeline, lab.config, [case.prompt], [case.seed], open_device("cpu"), decode=False).latents
    lab.trials().run(case, Rectangle(1, 2, 0, lab.blocks).policy(lab.steps, lab.blocks), 0)
    after = generate(lab.pipeline, lab.config, [case.prompt], [case.seed], open_device("cpu"), decode=False).latents
    same = torch.equal(idle, case.final) and torch.equal(after, case.final)
    print(f"off: the recorded bytes, with an idle cache and after one was removed: {same}")
    return same


def chosen(lab: Lab, prediction: Prediction) -> list[list[tuple[Policy, float]]]:
    """Groups of rectangles of equal predicted speed, drawn by lot, each with its predicted damage."""
    dice, groups = random.Random(0), []
    everything = [each for each in prediction.rectangles() if np.isfinite(each[1]) and each[0].step_start > 0]
    for target in lab.scale.targets:
        near = [each for each in everything if abs(each[2] / target - 1) < WITHIN]
        drawn = dice.sample(near, min(lab.scale.group, len(near)))
        groups.append([(config.policy(lab.steps, lab.blocks), damage) for config, damage, _ in drawn])
    return groups


def rank(a: Sequence[float], b: Sequence[float]) -> float:
    return float(spearmanr(a, b).statistic)


def ranking(lab: Lab) -> bool:
    """Predicted against true damage: over all configurations, and within groups of equal predicted speed."""
    predicted, _ = lab.predicted
    prediction = predicted.prediction
    groups = chosen(lab, prediction)
    everything = [each for group in groups for each in group]
    true = [lab.damage(policy) for policy, _ in everything]
    movement = replace(prediction, costs=predicted.local)
    print(f"ranking: {len(everything)} configurations in {len(groups)} groups, {lab.scale.held_out} held-out prompts")

    def ranked(way: Callable[[Policy], float]) -> tuple[float, list[float]]:
        """Over all, and within each group."""
        within = [rank([way(policy) for policy, _ in g], [lab.damage(policy) for policy, _ in g]) for g in groups]
        return rank([way(policy) for policy, _ in everything], true), [0.0 if np.isnan(x) else x for x in within]

    medians = {}
    for name, way in {
        "prediction": prediction.damage,
        "movement alone": movement.damage,
        "skipped blocks": lambda policy: float(policy.skipped()),
    }.items():
        overall, within = ranked(way)
        medians[name] = (overall, statistics.median(within))
        each = " ".join(f"{value:.2f}" for value in within)
        print(f"  {name:<15} overall {overall:.3f}  within groups, median {medians[name][1]:.3f}  ({each})")
    costs = prediction.costs
    finite = np.where(np.isfinite(costs), costs, costs[np.isfinite(costs)].max())
    shuffled = []
    for seed in range(SHUFFLES):
        order = np.random.default_rng(seed).permutation(lab.steps)
        overall, within = ranked(Prediction(finite[order], prediction.times).damage)
        shuffled.append((overall, statistics.median(within)))
    middle, most = np.median(shuffled, axis=0), np.max(shuffled, axis=0)
    print(f"  steps shuffled  overall {middle[0]:.3f} (at most {most[0]:.3f})  within groups, median {middle[1]:.3f} "
          f"(at most {most[1]:.3f}), of {SHUFFLES} shuffles")  # fmt: skip
    ratios = [damage / max(lab.damage(policy), 1e-9) for policy, damage in everything]
    print(f"  predicted / true damage: median {statistics.median(ratios):.2f}")
    counted = medians["skipped blocks"][1]

    def good(overall: float, inside: float) -> bool:
        return overall >= 0.9 and inside >= 0.6 and inside >= counted + 0.1

    return good(*medians["prediction"]) and not any(good(*each) for each in shuffled)


@dataclass
class Answer:
    """What a search came to, and what it spent beyond the recording."""

    name: str
    config: Config
    forwards: int
    policy: Policy


def answers(lab: Lab) -> bool:
    """The answers of every search at each ratio: measured speed and true damage, and what they spent. Beside each other
    answer stands what the recording has at the speed that is predicted of both."""
    found: dict[str, Answer] = {}
    recorded = lab.steps * (len(lab.recorded) + len(lab.verification))
    for ratio in lab.scale.ratios:
        name = f"dit_cache {ratio:g}"
        found[name] = ours(lab, search.rectangles, name, ratio)
        found[f"adaptive {ratio:g}"] = ours(lab, search.adaptive, f"adaptive {ratio:g}", ratio)
        found[f"adaptive as {name}"] = as_fast(lab, search.adaptive, f"adaptive as {name}", found[name])
        others = [by_exhaustive(lab, ratio)]
        if python := os.environ.get("MSMODELSLIM_PYTHON"):
            others.append(by_msmodelslim(lab, ratio, python))
        for other in filter(None, others):
            found[other.name] = other
            twin = as_fast(lab, search.rectangles, f"dit_cache as {other.name}", other)
            found[twin.name] = twin
    print(f"answers: {len(lab.recorded)} recorded prompts and {len(lab.verification)} for verification, {recorded} "
          f"forwards of the recording not in the column; {lab.scale.held_out} held-out prompts")  # fmt: skip
    speeds = race(lab, [each.policy for each in found.values()])
    rows = dict(zip(found, speeds, strict=True))
    for name, (speed, low, high) in rows.items():
        errors = lab.errors(found[name].policy)
        print(f"  {name:<28} {found[name].forwards:>6} forwards  {speed:.3f} times as fast [{low:.3f}, {high:.3f}]  "
              f"latent error {statistics.fmean(errors):.4f}, median {statistics.median(errors):.4f}  "
              f"{told(found[name].config)}")  # fmt: skip
    return all([compared(lab, found, rows, recorded, ratio) for ratio in lab.scale.ratios])


def compared(
    lab: Lab, found: dict[str, Answer], rows: dict[str, tuple[float, float, float]], recorded: int, ratio: float
) -> bool:
    """What is wanted of one ratio, in words and as a verdict."""
    name = f"dit_cache {ratio:g}"
    speed, _, high = rows[name]
    spent, good = found[name].forwards, speed >= 0.97 * ratio and high >= ratio
    print(f"  R = {ratio:g}: {'reached' if good else 'NOT reached'}")
    for theirs in [f"{who} {ratio:g}" for who in ("exhaustive", "msmodelslim") if f"{who} {ratio:g}" in found]:
        twin, many = f"dit_cache as {theirs}", found[theirs].forwards
        damages = lab.damage(found[theirs].policy), lab.damage(found[twin].policy)
        print(
            f"    {theirs}: {many / spent:.1f} times our forwards ({many / (spent + recorded):.1f} with the recording "
            f"counted); ours at {rows[twin][0] / rows[theirs][0]:.3f} times its speed has "
            f"{damages[1] / damages[0]:.2f} times its damage"
        )
        good &= many >= 3 * spent and damages[1] <= damages[0]
    twin = f"adaptive as {name}"
    damages = lab.damage(found[twin].policy), lab.damage(found[name].policy)
    print(f"    adaptive: {damages[0] / damages[1]:.2f} times the rectangle's damage at "
          f"{rows[twin][0] / speed:.3f} times its speed")  # fmt: skip
    return good and damages[0] <= 0.8 * damages[1] and rows[twin][0] >= 0.98 * speed


def ours(lab: Lab, pool: search.Pool, name: str, ratio: float) -> Answer:
    trials = lab.trials()
    predicted, spent = lab.predicted
    budget = GENERATIONS * lab.steps - spent
    outcome = search.search(predicted.prediction, pool, trials, lab.verification, ratio, None, budget)
    print(f"  {name}: {outcome.statement}")
    assert outcome.answer is not None, outcome.statement
    best = outcome.verified[outcome.answer].candidate
    return Answer(name, best.config, spent + trials.forwards, best.policy)


def as_fast(lab: Lab, pool: search.Pool, name: str, other: Answer) -> Answer:
    """The least damaging candidate that is predicted to be as fast as another answer."""
    predicted, spent = lab.predicted
    wanted = predicted.prediction.times.speedup(other.policy)
    best = min((c for c in pool(predicted.prediction) if c.speedup >= wanted - 1e-9), key=lambda c: c.damage)
    return Answer(name, best.config, spent, best.policy)


def by_exhaustive(lab: Lab, ratio: float) -> Answer | None:
    prompts = [(case.prompt, case.seed) for case in lab.recorded]
    clips = Clips(*map(list, zip(*prompts, strict=True)), torch.empty(0), {})
    clips = lab.made(clips, Policy((None,) * lab.steps), 0, decode=True)
    made = 1

    def score(rectangle: Rectangle) -> float:
        nonlocal made
        made += 1
        frames = lab.made(clips, rectangle.policy(lab.steps, lab.blocks), 0, decode=True).frames
        return float((frames.float() - clips.frames.float()).square().mean())

    try:
        found = exhaustive.exhaustive(lab.steps, lab.blocks, ratio, exhaustive.INTERVAL, score)
    except ValueError as error:
        print(f"  exhaustive {ratio:g}: refused, {error}")
        return None
    policy = found.answer.policy(lab.steps, lab.blocks)
    return Answer(f"exhaustive {ratio:g}", found.answer, made * len(prompts) * lab.steps, policy)


def by_msmodelslim(lab: Lab, ratio: float, python: str) -> Answer:
    """Its own search, in this interpreter, with the package of another one."""
    from msmodelslim_search import searched

    prompts = [(case.prompt, case.seed) for case in lab.recorded]
    found, forwards, seconds = searched(python, lab.pipeline, lab.config, prompts, lab.steps, ratio)
    print(f"  msmodelslim {ratio:g}: {seconds:.0f} s, {found}")
    rectangle = Rectangle(*(found[name] for name in ("cache_step_start", "cache_step_interval", "cache_block_start",
                                                     "cache_num_blocks")))  # fmt: skip
    return Answer(f"msmodelslim {ratio:g}", rectangle, forwards, rectangle.policy(lab.steps, lab.blocks))


def race(lab: Lab, policies: Sequence[Policy]) -> list[tuple[float, float, float]]:
    """The speed of the loop under each policy against none, all arms in turn: (ratio of medians, low, high)."""
    arms = [Policy((None,) * lab.steps), *policies]
    seconds: list[list[float]] = [[] for _ in arms]
    for turn in range(lab.scale.rounds + 1):
        for place, policy in enumerate(arms):
            taken = loop_seconds(lab, policy)
            if turn:  # the first round warms up
                seconds[place].append(taken)
    dice = random.Random(0)

    def ratio(plain: list[float], other: list[float]) -> float:
        return statistics.median(plain) / statistics.median(other)

    found = []
    for other in seconds[1:]:
        resampled = (
            (dice.choices(seconds[0], k=len(seconds[0])), dice.choices(other, k=len(other))) for _ in range(999)
        )
        drawn = sorted(ratio(*pair) for pair in resampled)
        found.append((ratio(seconds[0], other), drawn[24], drawn[974]))
    clip = statistics.median(seconds[0])
    print(f"  the loop without reuse: {clip:.2f} s of CPU; interleaved, {lab.scale.rounds} rounds")
    return found


def loop_seconds(lab: Lab, policy: Policy) -> float:
    """CPU time from the first call of the transformer to the end of the last step."""
    hardware, case = open_device("cpu"), lab.recorded[0]
    marks: list[float] = []
    with Steps(lab.pipeline) as steps, Reuse(lab.pipeline.transformer, steps, policy):
        first = lab.pipeline.transformer.register_forward_pre_hook(lambda *_: marks.append(hardware.clock()))
        steps.after.append(lambda _: marks.append(hardware.clock()))
        generate(lab.pipeline, lab.config, [case.prompt], [case.seed], hardware, decode=False)
        first.remove()
    return marks[-1] - marks[0]


def told(config: Config) -> str:
    if isinstance(config, Rectangle):
        return f"start {config.step_start} every {config.step_interval} blocks {config.block_start}+{config.num_blocks}"
    return f"{len(config.segments)} segments"


def counts(lab: Lab) -> bool:
    """What both searches spend by count on the released size: 32 blocks, 100 steps, four prompts."""
    steps, blocks, prompts, good = 100, 32, 4, True
    for ratio in RATIOS:
        length = exhaustive.least_length(steps, blocks, ratio, exhaustive.INTERVAL)
        spent = []  # where the best places are the last ones few longer ranges fit, where they are the first ones many
        for sign in (-1, 1):
            tried = len(exhaustive.exhaustive(steps, blocks, ratio, 2, lambda r, s=sign: s * r.block_start).tried)
            spent.append((tried + 1) * prompts * steps)
        least = GENERATIONS * steps
        recorded = (prompts + 1) * steps
        print(
            f"counts, R = {ratio:g}: {length} blocks or more; exhaustive {min(spent):,} to {max(spent):,} forwards, "
            f"ours at most {least:,} beside a recording of {recorded:,}: "
            f"{min(spent) / least:.0f} to {max(spent) / least:.0f} times fewer, "
            f"{min(spent) / (least + recorded):.0f} to {max(spent) / (least + recorded):.0f} with it"
        )
        good &= min(spent) >= 10 * least
    return good


PARTS = {"off": off, "ranking": ranking, "answers": answers, "counts": counts}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    wanted = f"of {', '.join(PARTS)}, all by default; KEY=VALUE: as the runner takes it"
    parser.add_argument("parts", nargs="*", metavar="PART", help=wanted)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--output", type=Path, help="keeps the recording there, for another time")
    parser.add_argument("--prompts", type=int, help="held-out prompts")
    options = parser.parse_args()
    arguments, parts = ([each for each in options.parts if ("=" in each) == own] for own in (True, False))
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; expected some of {', '.join(PARTS)}")
    say_processor()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        scale = SHORT if options.short else FULL
        scale = replace(scale, arguments=(*scale.arguments, *arguments), held_out=options.prompts or scale.held_out)
        lab = Lab(options.output or Path(temporary), scale)
        passed = {name: PARTS[name](lab) for name in parts or PARTS}
    print(", ".join(f"{name}: {'passes' if good else 'FAILS'}" for name, good in passed.items()))
    return 0 if options.short or all(passed.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
