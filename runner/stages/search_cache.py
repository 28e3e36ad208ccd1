"""search-cache: find what to reuse, on dump's recording and a few generations; the rooms do the work (runner.cache).

Movement and gains are those of the float model. The answer is verified on the model that sample will run, the quantized
one where there is one, on prompts and noise that were not recorded.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from runner.bench.context import Context
from runner.cache import exhaustive, policy, probes, search
from runner.cache.policy import GENERATIONS, Config, Policy, Rectangle
from runner.cache.rules import FOUND
from runner.cache.search import Candidate, Outcome
from runner.cache.speed import Times, measured
from runner.cache.trial import Case, Trials
from runner.generation.generate import forwards
from runner.metrics.video import relative_error
from runner.model import blocks
from runner.recording.movement import Movement
from runner.recording.recording import Recording
from runner.search.kept import Found, Kept

log = logging.getLogger(__name__)


def run(context: Context, draft: Path) -> None:
    config, by = context.config, context.config["cache"]["search"]
    recording = Recording(context.artifacts["dump"])
    kept = Kept(draft, context.measured.get("trials", ()))
    found, facts = (_exhaustive if by == "exhaustive" else _on_recording)(context, recording, kept)
    context.measurements["trials"] = kept.measurements
    if found is not None:
        policy.write(found, draft / FOUND)
    (draft / "search.json").write_text(json.dumps({"search": by, **config["cache"], **facts}, indent=2))
    context.console.print(f"{context.stage:<10} {facts['statement']}", highlight=False, soft_wrap=True)


def _cases(recording: Recording, role: str) -> list[Case]:
    roles = {recording.folder / prompt["folder"]: prompt for prompt in recording.prompts}
    return [
        Case(roles[part]["prompt"], roles[part]["seed"], recording.final(part), recording.predictions(part))
        for part in recording.parts(role)
    ]


def _on_recording(context: Context, recording: Recording, kept: Kept) -> tuple[Config | None, dict[str, Any]]:
    config, cache = context.config, context.config["cache"]
    movements = [Movement.read(part) for part in recording.parts("calibration")]
    steps, count = len(movements[0].gram), movements[0].blocks
    cases, verification = _cases(recording, "calibration"), _cases(recording, "verification")
    with context.progress(GENERATIONS * steps) as ticker:
        trials = Trials(context.pipeline(), config, context.hardware, ticker.advance, kept=kept)
        predicted = probes.predict(trials, cases, movements, _recorded_times(context, count))
        if config["quant"]["scheme"] != "none":
            trials.pipeline = context.quantized_pipeline()
            verification = [_uncached(trials, case, steps) for case in verification]
        outcome = search.search(
            predicted.prediction,
            search.adaptive if cache["policy"] == "adaptive" else search.rectangles,
            trials,
            verification,
            None if cache["ratio"] == "auto" else cache["ratio"],
            cache["quality"],
            GENERATIONS * steps - trials.forwards,
        )
    facts = _facts(context, outcome, trials, steps, count) | {
        "probes": [asdict(probe) for probe in predicted.probes],
        "gains": predicted.prediction.gains.tolist(),
        "transfers": predicted.transfers.alone.tolist(),
        "together": predicted.transfers.together.tolist(),
        # Of each block by itself since the step before, by step: how much of its change moved.
        "movement": [[float(predicted.local[t, 0, b, b + 1]) for b in range(count)] for t in range(1, steps)],
    }
    return None if outcome.answer is None else outcome.verified[outcome.answer].candidate.config, facts


def _uncached(trials: Trials, case: Case, steps: int) -> Case:
    """The case as another model than the recorded one makes it: run once, for what every candidate has in common."""
    done = trials.run(case, Policy((None,) * steps), 0, keep=True)
    return replace(case, final=done.latents, predictions=done.predictions)


def _recorded_times(context: Context, count: int) -> Times:
    """Block times as dump measured them on this machine; alike for all blocks where it did not."""
    try:
        found = json.loads((context.run / "measurements" / "dump.json").read_text())["blocks"]
        return Times(found["step_seconds"], tuple(found["block_seconds"]))
    except (OSError, KeyError):
        log.info("dump measured no block times on this machine: blocks are taken to be alike")
        return Times(1.0, (1 / count,) * count)


def _exhaustive(context: Context, recording: Recording, kept: Kept) -> tuple[Config, dict[str, Any]]:
    config, cache = context.config, context.config["cache"]
    quantized = config["quant"]["scheme"] != "none"
    pipeline = context.quantized_pipeline() if quantized else context.pipeline()
    steps, count = forwards(pipeline, config["sampler"]["num_sampling_steps"]), len(blocks(pipeline))
    cases = _cases(recording, "verification")
    frames = [load_file(part / "frames.safetensors")["frames"] for part in recording.parts("verification")]
    interval = cache["step_interval"] or exhaustive.INTERVAL
    made: dict[Rectangle, search.Verified] = {}
    total = exhaustive.at_most(steps, count, cache["ratio"], interval) * steps * len(cases)
    with context.progress(total) as ticker:
        trials = Trials(pipeline, config, context.hardware, ticker.advance)

        def score(rectangle: Rectangle) -> float:
            decided, before = rectangle.policy(steps, count), trials.forwards

            def make() -> Found:
                done = [trials.run(case, decided, 0, decode=True) for case in cases]
                errors = [relative_error(one.latents, case.final) for one, case in zip(done, cases, strict=True)]
                squares = [(a.frames[0].float() - b.float()).square().mean() for a, b in zip(done, frames, strict=True)]
                return {
                    "seconds": [list(one.seconds.items()) for one in done],
                    "forwards": sum(one.forwards for one in done),
                    "errors": errors,
                    "score": float(torch.stack(squares).mean()),
                }, {}

            one, _ = kept.get(rectangle.to_json(), make)
            trials.forwards = before + one["forwards"]  # kept ones count, too
            speed = measured(decided, [dict(seconds) for seconds in one["seconds"]])
            candidate = Candidate(rectangle, decided, float("nan"), float("nan"))
            made[rectangle] = search.Verified(candidate, one["errors"], speed, one["forwards"])
            return float(one["score"])

        found = exhaustive.exhaustive(steps, count, cache["ratio"], interval, score)
    tried = [made[rectangle] for rectangle, _ in found.tried]
    best = made[found.answer]
    said = f"{len(tried)} candidates; the least squared error of the frames, {found.score:.1f}, has one that is "
    said += f"{best.speed['speedup']:.3f} times as fast" if best.speed else "of unknown speed"
    outcome = Outcome(tried.index(best), f"{said}, at a latent error of {best.damage:.4f}", tried)
    facts = _facts(context, outcome, trials, steps, count)
    return found.answer, facts | {"scores": [score for _, score in found.tried]}


def _facts(context: Context, outcome: Outcome, trials: Trials, steps: int, count: int) -> dict[str, Any]:
    """What search.json says of any search; the measured speeds are kept beside it, with the measurements."""
    context.measurements["verified"] = [verified.speed for verified in outcome.verified]
    return {
        "statement": outcome.statement,
        "answer": outcome.answer,
        "steps": steps,
        "blocks": count,
        "forwards": trials.forwards,
        "generations": trials.forwards / steps,
        "verified": [
            {**_candidate(each.candidate), "errors": each.errors, "damage": each.damage, "forwards": each.forwards}
            for each in outcome.verified
        ],
        "front": [_candidate(each) for each in outcome.predicted],
    }


def _candidate(each: Candidate) -> dict[str, Any]:
    """JSON knows no NaN: what was not predicted is null."""
    known = each.damage == each.damage
    predicted = {"predicted_damage": each.damage, "predicted_speedup": each.speedup} if known else {}
    return {"config": each.config.to_json(), **predicted}
