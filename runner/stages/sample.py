"""sample: generate with what the earlier stages made, from their files, and compare with the float reference.

What a cache reuses is not computed, here and nowhere else. First the configuration under test alone, for its own
latency and memory; then single steps of both models in turn, for an honest ratio; then the comparison, clip by clip.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from runner.bench.context import Context, float_transformer
from runner.cache import rules
from runner.cache.policy import Policy
from runner.cache.reuse import Reuse
from runner.cache.speed import StepTimes, measured
from runner.generation.generate import Clock, forwards, frame_rate, generate, race, save_part
from runner.generation.media import contact_sheet
from runner.generation.offload import on_device
from runner.generation.sharing import mirrored
from runner.generation.steps import Steps
from runner.metrics.compare import Clip, compare
from runner.metrics.perceptual import ClipScore, Lpips
from runner.model import blocks
from runner.model.arguments import moved
from runner.quant.ledger import count
from runner.quant.linear import computed_with
from runner.recording.recording import Recording
from runner.store.durable import finish, unfinished

log = logging.getLogger(__name__)

SHEET_ROWS = 8  # clips on the contact sheet


def run(context: Context, draft: Path) -> None:
    config = context.config
    quantized = config["quant"]["scheme"] != "none"
    pipeline = context.quantized_pipeline() if quantized else context.pipeline()
    metrics: dict[str, Any] = {}
    policy = None
    if cached := rules.chosen(config["cache"], context.artifacts.get("search-cache")):
        loops = config["model"].get("loop", 1)  # clips that a video is joined of, each with all steps
        steps = forwards(pipeline, config["sampler"]["num_sampling_steps"]) // loops
        policy = Policy(cached.policy(steps, len(blocks(pipeline))).ranges * loops)
        metrics["cache"] = {"config": cached.to_json(), "blocks": len(blocks(pipeline)), "ranges": policy.ranges}
    _generate(context, pipeline, draft, policy)
    parts = [draft / prompt["folder"] for prompt in _prompts(config)]

    if quantized and (recorded := _recorded_call(context)):
        transformer = on_device(pipeline.transformer)
        call = moved(recorded, transformer.device)
        ledger = count(transformer, call)
        metrics["ledger"] = asdict(ledger) | {"int8_share": ledger.int8_share}
        context.measurements["kernels"] = computed_with(transformer)
        if config["timing"]["repeats"]:
            context.measurements |= race(
                float_transformer(config),
                transformer,
                call,
                context.hardware,
                config["timing"]["warmup"],
                config["timing"]["repeats"],
            )
    if config["sample"]["compare"]:
        # A searched schedule is compared with the longer run that it was searched in.
        references = Recording(context.artifacts.get("dump-schedule") or context.artifacts["dump"]).parts("text")
        lpips, clip = config["sample"]["lpips"], config["sample"]["clip"]
        metrics |= compare(
            map(_clip, references),
            map(_clip, parts),
            _prompts(config),
            judge=_judge(config),
            distance=Lpips(lpips) if lpips else None,
            clip_score=ClipScore(clip) if clip else None,
        )
        if config["sample"]["save"]:
            rows = zip(_prompts(config), references, parts, strict=True)
            contact_sheet(_rows(list(rows)[:SHEET_ROWS]), draft / "contact_sheet.png")
    (draft / "metrics.json").write_text(json.dumps(metrics, indent=2))


def _recorded_call(context: Context) -> dict[str, Any] | None:
    """A call of the transformer that dump recorded; None in a run that needs no recording."""
    if "dump" not in context.artifacts:
        return None
    recording = Recording(context.artifacts["dump"])
    parts = recording.parts("calibration")
    return next(recording.calls(parts[0])) if parts else None


def _prompts(config: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"index": index, "prompt": prompt, "seed": config["seed"] + index, "folder": f"prompt-{index:03d}"}
        for index, prompt in enumerate(config["prompts"]["text"])
    ]


def _generate(context: Context, pipeline: Any, draft: Path, policy: Policy | None) -> None:
    """Generate every prompt that a run cut short has not finished yet."""
    config, prompts, clock = context.config, _prompts(context.config), Clock()
    size = config["model"]["batch_size"]
    batches = [prompts[i : i + size] for i in range(0, len(prompts), size)]
    todo = [batch for batch in batches if not all((draft / p["folder"]).exists() for p in batch)]
    timed: list[dict[int, float]] = []
    context.hardware.reset_peak_memory()
    with context.progress(len(todo) * forwards(pipeline, config["sampler"]["num_sampling_steps"])) as ticker:
        for batch in todo:
            with ExitStack() as stack:
                if policy:
                    steps = stack.enter_context(Steps(pipeline))
                    times = StepTimes(steps, context.hardware)
                    stack.enter_context(mirrored(Reuse, pipeline.transformer, steps, policy))
                generation = generate(
                    pipeline,
                    config,
                    [p["prompt"] for p in batch],
                    [p["seed"] for p in batch],
                    context.hardware,
                    ticker.advance,
                )
            if policy:
                timed.append(times.seconds())
            clock.add(generation, len(batch))
            for row, prompt in enumerate(batch):
                part = draft / prompt["folder"]
                video = draft / "videos" / prompt["folder"] if config["sample"]["save"] else None
                finish(part, beside=save_part(generation, row, unfinished(part), video, frame_rate(config)))
    (draft / "prompts.json").write_text(json.dumps(prompts, indent=2))
    context.measurements |= {"generation": clock.summary(), "peak_memory_bytes": context.hardware.peak_memory()}
    if policy and todo:
        context.measurements["cache"] = measured(policy, timed)


def _clip(part: Path) -> Clip:
    return Clip(load_file(part / "frames.safetensors")["frames"], load_file(part / "latents.safetensors")["latents"])


def _rows(chosen: list[tuple[dict[str, Any], Path, Path]]) -> Iterator[tuple[str, Any]]:
    """Label and frames of the contact sheet: the float strip under its prompt, the other joined to it."""
    for prompt, reference, part in chosen:
        yield prompt["prompt"], _clip(reference).frames.numpy()
        yield "", _clip(part).frames.numpy()


def _judge(config: dict[str, Any]) -> Callable[[Any, str], float] | None:
    """The judge of the little world, if it is asked for and every prompt is one of its captions."""
    if config["sample"]["judge"] == "none":
        return None
    from runner.embedded import judge, world

    try:
        for prompt in config["prompts"]["text"]:
            world.parse(prompt)
    except ValueError as error:
        log.warning("clips are not judged: %s", error)
        return None
    return lambda frames, caption: judge.score(frames.numpy(), caption)
