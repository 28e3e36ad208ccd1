"""benchmark: time whole generations, from words to saved videos, and say where the time goes.

What was timed is the artifact; the times are measurements, measurements/benchmark.json, with the keys of the GCU port's
report (performance_info and what stands beside it), so that its readers read this one, too. What a timed batch took is
kept when its videos are: a benchmark that is cut off goes on with the batches that this machine has timed.
"""

from __future__ import annotations

import json
import time
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from runner.bench.context import Context
from runner.generation.generate import Generation, forwards, generate, save_part, spread
from runner.generation.phases import Phases
from runner.generation.steps import Steps
from runner.hardware import facts
from runner.search.kept import Found, Kept
from runner.store import machine
from runner.store.durable import finish, unfinished

WARMUP_STEPS = 5  # of a warm-up, as in the port; the desk counts on it
QUANTILES = (0.5, 0.9, 0.95, 0.99)


def run(context: Context, draft: Path) -> None:
    config, timing = context.config, context.config["timing"]
    context.bench.clear()  # so that loading is timed
    start = time.perf_counter()
    pipeline = context.pipeline() if config["quant"]["scheme"] == "none" else context.quantized_pipeline()
    context.hardware.synchronize()
    loading = time.perf_counter() - start

    texts, size = config["prompts"]["text"], config["model"]["batch_size"]
    batches = [range(i, min(i + size, len(texts))) for i in range(0, len(texts), size)]
    short = with_steps(config, min(WARMUP_STEPS, config["sampler"]["num_sampling_steps"]))
    evaluations = [forwards(pipeline, c["sampler"]["num_sampling_steps"]) for c in (short, config)]
    total = timing["warmup"] * evaluations[0] + timing["repeats"] * len(batches) * evaluations[1]
    kept, session = Kept(draft), time.time()
    with context.progress(total) as ticker:

        @cache
        def warm_up() -> None:
            for _ in range(timing["warmup"]):
                _generate(context, pipeline, short, batches[0], ticker.advance)
            context.hardware.reset_peak_memory()

        def timed(batch: range) -> Found:
            warm_up()
            seconds = _timed(context, pipeline, batch, draft, ticker.advance)
            return {**seconds, "peak": context.hardware.peak_memory(), "session": session}, {}

        for repeat in range(timing["repeats"]):
            for batch in batches:
                asked = {"repeat": repeat, "prompts": list(batch), "machine": machine.identity()}
                kept.get(asked, partial(timed, batch))
    measured = kept.found
    peak = max(one["peak"] for one in measured)
    information = performance(config, measured) | {
        "model_load_time": loading,  # in the session that ended it
        "sessions": len({one["session"] for one in measured}),
        "peak_memory_bytes": peak,
        "device": context.hardware.DEVICE,
        "output_path": str(context.run / context.stage / "videos"),
    }
    context.measurements |= {"performance_info": information, **facts.gather(context.hardware)}
    (draft / "prompts.json").write_text(json.dumps(texts, indent=2, ensure_ascii=False))
    context.console.print(
        f"{context.stage:<10} {information['Avg single prompt infer time']:.2f} s a video, "
        f"{information['frames_per_second']:.2f} frames/s, step {information['step_seconds']['p50']:.3f} s, "
        f"peak {peak / 1e9:.2f} GB",
        highlight=False,
    )


def with_steps(config: dict[str, Any], steps: int) -> dict[str, Any]:
    """The configuration with so many steps, spread as the solver spreads them."""
    return {**config, "sampler": {**config["sampler"], "num_sampling_steps": steps, "schedule": None}}


def _generate(context: Context, pipeline: Any, config: dict[str, Any], batch: range, on_step: Any) -> Generation:
    prompts = [config["prompts"]["text"][i] for i in batch]
    return generate(pipeline, config, prompts, [config["seed"] + i for i in batch], context.hardware, on_step)


def _timed(context: Context, pipeline: Any, batch: range, draft: Path, on_step: Any) -> dict[str, Any]:
    """Seconds of one batch by phase, its videos saved, and on disk when that has been timed."""
    with Steps(pipeline) as steps, Phases(pipeline, steps, context.hardware) as phases:
        generation = _generate(context, pipeline, context.config, batch, on_step)
    start = time.perf_counter()
    parts, fps = [draft / f"prompt-{index:03d}" for index in batch], context.config["model"]["fps"]
    saved = [
        save_part(generation, row, unfinished(part), draft / "videos" / part.name, fps)
        for row, part in enumerate(parts)
    ]
    saving = time.perf_counter() - start
    for part, videos in zip(parts, saved, strict=True):
        finish(part, beside=videos)
    return {
        "frames": generation.frames.shape[0] * generation.frames.shape[1],
        "clips": len(batch),
        "generation": generation.seconds,
        "steps": phases.steps,
        "save": saving,
        **phases.seconds,
    }


def performance(config: dict[str, Any], measured: list[dict[str, Any]]) -> dict[str, Any]:
    """performance_info: the port's keys first, in seconds but for QPS, which is frames in 1000 seconds there.

    measured: by batch its clips, its frames and the seconds of its phases. The seconds of all are those of the batches.
    """
    model, sampler, timing = config["model"], config["sampler"], config["timing"]
    clips, frames = (sum(one[what] for one in measured) for what in ("clips", "frames"))
    whole = sum(one["generation"] + one["save"] for one in measured)
    steps = torch.tensor([step for one in measured for step in one["steps"]], dtype=torch.float64)
    quantiles = torch.quantile(steps, torch.tensor(QUANTILES, dtype=torch.float64)).tolist()

    def a_clip(phase: str) -> float:
        return sum(one[phase] for one in measured) / clips

    return {
        "QPS": frames * 1000 / whole,
        "resolution": model.get("resolution") or f"{model['height']}x{model['width']}",
        "aspect_ratio": model.get("aspect_ratio") or "",
        "batch_size": model["batch_size"],
        "dtype": model["dtype"],
        "scheduler": sampler["sample_method"].lower(),
        "fps": model["fps"],
        "num_frames": model["num_frames"],
        "num_sample": 1,
        "denoising_steps": sampler["num_sampling_steps"],
        "seed": config["seed"],
        "warmup_count": timing["warmup"],
        "eval_count": timing["repeats"],
        "Avg infer time": whole / timing["repeats"],
        "Avg single prompt infer time": a_clip("generation"),
        "Avg single video save time": a_clip("save"),
        # what the port's report lacks
        "compute": config["hardware"]["compute"],
        "height": model["height"],
        "width": model["width"],
        "prompts": len(config["prompts"]["text"]),
        "quant": config["quant"]["scheme"],
        "frames_per_second": frames / whole,
        "text_encoding_seconds": a_clip("text"),
        "reference_encoding_seconds": a_clip("encode"),
        "vae_decode_seconds": a_clip("decode"),
        "offload_seconds": a_clip("offload"),
        "save_seconds": a_clip("save"),
        "step_seconds": {
            **{f"p{round(100 * q)}": value for q, value in zip(QUANTILES, quantiles, strict=True)},
            "mean": float(steps.mean()),
            "n": len(steps),
        },
        "generation_seconds": spread([one["generation"] for one in measured]),
    }
