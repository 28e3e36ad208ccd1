"""search-schedule: the K timesteps that keep closest to a recorded run of N steps, or Align Your Steps'.

In a recording, what is best on paper is tried on a prompt that dump recorded for this, with noise of its own, beside
the solver's own timesteps, and written unless it fails there. search.json says what was found on the way.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from runner.bench.context import Context
from runner.generation.generate import generate, is_ours
from runner.generation.media import read_clip
from runner.generation.offload import on_device
from runner.generation.steps import Steps
from runner.metrics.video import relative_error
from runner.recording.recording import Recording
from runner.sampler import ays, probes, schedules
from runner.sampler.jumps import scale
from runner.sampler.methods import SOLVERS
from runner.sampler.rules import videos
from runner.sampler.search import (
    Candidate,
    Trajectories,
    Walk,
    Walked,
    candidates,
    choose,
    gains_of_all,
    measure_gains,
)
from runner.search.kept import Found, Kept

RESULT = "search.json"


def run(context: Context, draft: Path) -> None:
    pipeline, kept = context.pipeline(), Kept(draft)
    if context.config["sampler"]["search"] == "recording":
        found = in_recording(context, pipeline, kept)
    else:
        found = aligned(context, pipeline, kept)
    chosen = found["tried"][choose([tried["error"] or 0.0 for tried in found["tried"]])]
    schedules.write(chosen["timesteps"], draft / schedules.NAME)
    found |= {"chosen": chosen["name"], "forwards": sum(trial["forwards"] for trial in kept.found)}
    (draft / RESULT).write_text(json.dumps(found, indent=2))


def in_recording(context: Context, pipeline: Any, kept: Kept) -> dict[str, Any]:
    """Dynamic programming on the errors of jumps, weighed by measured gains."""
    recording = Recording(context.artifacts["dump-schedule"])
    sampler, (verified,) = context.config["sampler"], recording.entries("verification")
    steps = sampler["num_sampling_steps"]
    runs = Trajectories(sampler["sample_method"], pipeline.scheduler)
    entries = recording.entries("trajectory")
    for part in recording.parts("trajectory"):
        runs.add(recording.trajectory(part), recording.final(part))
    evaluations = probes.evaluations(len(runs.timesteps), len(entries)) + probes.TRIED * steps
    with context.progress(evaluations) as ticker:
        with first_order(pipeline):
            measured = measure_gains(runs, walker(context, pipeline, entries, kept, ticker.advance))
        gains = gains_of_all(measured, len(runs.timesteps))
        walk, wanted = (
            walker(context, pipeline, [verified], kept, ticker.advance),
            recording.final(recording.folder / verified["folder"]),
        )
        own = walk(0, None)
        errors = {"uniform": relative_error(own.result, wanted)}
        found = candidates(runs, gains, steps)
        errors |= {each.name: relative_error(walk(0, each.timesteps).result, wanted) for each in found}
        tried = [{**asdict(each), "error": errors[each.name]} for each in [*found, Candidate("uniform", own.timesteps)]]
    return {
        "search": "recording",
        "recorded": {"timesteps": runs.timesteps, "gains": gains, "prompts": len(entries)},
        "perturbed": [asdict(gain) for gain in measured],
        "uniform": own.timesteps,
        "tried": tried,
    }


def aligned(context: Context, pipeline: Any, kept: Kept) -> dict[str, Any]:
    """Align Your Steps: from the solver's own timesteps, on the results of the recorded prompts or on videos. Where a
    timestep has moved to is kept, and it is not moved again."""
    sampler = context.config["sampler"]
    uniform = own_timesteps(pipeline, sampler["num_sampling_steps"])
    alphas = pipeline.scheduler.alphas_cumprod.double()
    levels = ays.Levels(((1 - alphas) / alphas).sqrt().numpy())
    space = SOLVERS[sampler["sample_method"]].space
    config, entries, clean = clean_latents(context, pipeline)

    def denoise(number: int, state: Tensor, sigma: float, timestep: float) -> Tensor:
        """A solver that steps from here to the end of the process arrives at what the model takes for x0."""
        entry = entries[number]
        result = generate(
            pipeline,
            config,
            [entry["prompt"]],
            [entry["seed"]],
            context.hardware,
            decode=False,
            timesteps=[timestep],
            latents=_as_kept(pipeline, state * scale(space, sigma), clean[number]),
        )
        return result.latents

    kind, iters, seed = sampler["neighbour_type"], sampler["monte_carlo_iters"], context.config["seed"]
    with context.progress(max(0, len(uniform) - 2)) as ticker:

        def move(timesteps: Sequence[float], place: int) -> float:
            def made() -> Found:
                with counted(pipeline.transformer) as calls:
                    found = ays.moved(timesteps, place, levels, clean, denoise, kind, iters, seed)
                ticker.advance()
                return {"timestep": found, "forwards": calls()}, {}

            return float(kept.get({"place": place, "timesteps": list(timesteps)}, made)[0]["timestep"])

        found = ays.align(uniform, move)
    return {
        "search": "ays",
        "uniform": uniform,
        "tried": [{"name": "Align Your Steps", "timesteps": found, "predicted": None, "error": None}],
    }


def clean_latents(
    context: Context, pipeline: Any
) -> tuple[Mapping[str, Any], Sequence[Mapping[str, Any]], list[Tensor]]:
    """The configuration to denoise under, and the prompt, seed and latents [1,C,T,H,W] of clean clips. What a user's
    videos show is not known: they are denoised without prompt and guidance."""
    config = context.config
    if config["sampler"]["videos_path"] is None:
        recording = Recording(context.artifacts["dump-schedule"])
        return config, recording.entries("trajectory"), list(map(recording.final, recording.parts("trajectory")))
    model, vae, clean = config["model"], on_device(pipeline.vae), []
    for file in videos(Path(config["sampler"]["videos_path"])):
        frames = torch.from_numpy(read_clip(file, model["num_frames"], model["height"], model["width"]))
        pixels = frames.permute(3, 0, 1, 2)[None].to(vae.device, vae.dtype) / 127.5 - 1
        with torch.inference_mode():
            clean.append((vae.encode(pixels).latent_dist.mode() * vae.scaling_factor).cpu())
    unguided = {**config, "sampler": {**config["sampler"], "guidance_scale": 1.0}}
    return unguided, [{"prompt": "", "seed": config["seed"] + n} for n in range(len(clean))], clean


def _as_kept(pipeline: Any, latents: Tensor, kept: Tensor) -> Tensor:
    """Latents to start from, in the dtype in which a foreign scheduler has kept others."""
    return latents if is_ours(pipeline) else latents.to(kept.dtype)


def own_timesteps(pipeline: Any, steps: int) -> list[float]:
    """What the solver takes where it is not told."""
    pipeline.scheduler.set_timesteps(steps)
    return [float(t) for t in pipeline.scheduler.timesteps]


def walker(
    context: Context, pipeline: Any, entries: Sequence[Mapping[str, Any]], kept: Kept, on_step: Callable[[], None]
) -> Walk:
    """Runs over given timesteps, each of one of these recorded prompts and on its noise. What is kept is not run."""

    last = torch.empty(0)  # latents of the walk before

    def walk(prompt: int, timesteps: Sequence[float] | None, latents: Tensor | None = None) -> Walked:
        nonlocal last
        asked = {name: entries[prompt][name] for name in ("prompt", "seed")}
        asked["timesteps"] = None if timesteps is None else list(map(float, timesteps))
        asked["latents"] = None if latents is None else sha256(latents.float().cpu().numpy().tobytes()).hexdigest()
        found, tensors = kept.get(asked, lambda: made(prompt, timesteps, latents))
        states = [tensors[f"state.{place}"] for place in range(len(found["timesteps"]))]
        last = states[-1]
        return Walked(found["timesteps"], states, tensors["result"])

    def made(prompt: int, timesteps: Sequence[float] | None, latents: Tensor | None) -> Found:
        taken: list[float] = []
        states: list[Tensor] = []

        def note(position: int, timestep: Any, state: Tensor, prediction: Tensor) -> None:
            taken.append(float(timestep))
            states.append(state.cpu().clone())

        entry = entries[prompt]
        with Steps(pipeline) as steps, counted(pipeline.transformer) as calls:
            steps.before.append(note)
            result = generate(
                pipeline,
                context.config,
                [entry["prompt"]],
                [entry["seed"]],
                context.hardware,
                on_step,
                decode=False,
                timesteps=timesteps,
                latents=None if latents is None else _as_kept(pipeline, latents, last),
                steps=steps,
            )
        named = {f"state.{place}": state for place, state in enumerate(states)}
        return {"timesteps": taken, "forwards": calls()}, {"result": result.latents, **named}

    return walk


@contextmanager
def first_order(pipeline: Any) -> Iterator[None]:
    """Have a solver of higher order take steps of first order, as it must where it starts: continuations from the
    middle of a run then differ from it in the added error alone."""
    own = pipeline.scheduler
    if own.config.get("solver_order", 1) > 1:
        pipeline.scheduler = type(own).from_config(own.config, solver_order=1)
    try:
        yield
    finally:
        pipeline.scheduler = own


@contextmanager
def counted(transformer: nn.Module) -> Iterator[Callable[[], int]]:
    """How often the transformer has been called since; a guided pair in one batch is one."""
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    hook = transformer.register_forward_hook(count)
    try:
        yield lambda: calls
    finally:
        hook.remove()
