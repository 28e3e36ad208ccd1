"""One call of a pipeline as an experiment needs it: seeded by prompt, timed by step, with latents and frames.

Any diffusers pipeline serves: where it stands is read off its scheduler and transformer (generation.steps).
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from runner.generation import sharing
from runner.generation.media import save_clip
from runner.generation.steps import Steps
from runner.hardware import Hardware
from runner.hardware.casting import DTYPES
from runner.model import apply_template, rules_of
from runner.sampler import schedules


@dataclass
class Generation:
    """latents after the last step ([B,C,T,H,W], or as a foreign scheduler keeps them), frames uint8 [B,T,H,W,3] (T = 1
    of images), and the seconds of each step but the first (which holds the text encoding), of decoding, and of all.
    Moving parts (runner.generation.offload) counts in the step or the decoding before which they move."""

    latents: Tensor
    frames: Tensor
    step_seconds: list[float] = field(default_factory=list)
    decode_seconds: float = 0.0
    seconds: float = 0.0


def forwards(pipeline: Any, num_sampling_steps: int) -> int:
    """How many times the solver evaluates the model in one generation (Heun's and PNDM's more often than steps)."""
    shifted = {"mu": 1.0} if pipeline.scheduler.config.get("use_dynamic_shifting") else {}  # which changes no number
    pipeline.scheduler.set_timesteps(num_sampling_steps, **shifted)
    return len(pipeline.scheduler.timesteps)


def is_ours(pipeline: Any) -> bool:
    """Whether a pipeline was written here: then its call takes timesteps, and how guidance is batched, and casts the
    latents that it is given."""
    return "guidance_batch" in inspect.signature(pipeline.__call__).parameters


def generate(
    pipeline: Any,
    config: Mapping[str, Any],
    prompts: Sequence[str],
    seeds: Sequence[int],
    hardware: Hardware,
    on_step: Callable[[], None] = lambda: None,
    decode: bool = True,
    timesteps: Sequence[float] | None = None,
    latents: Tensor | None = None,
    steps: Steps | None = None,
) -> Generation:
    """Generate one clip for each prompt, each from noise of its own seed, in one batch. Without `decode` it ends with
    the latents, and frames are empty. `timesteps` are those to take instead of the configuration's; `latents`
    [B,C,T,H,W] those to start from, as the scheduler keeps them at the first timestep, in float32 or, of a foreign
    pipeline, in the dtype that it keeps them in. `steps` says where the generation stands, to whoever has entered it
    already."""
    model, sampler = config["model"], config["sampler"]
    negative = model.get("negative_prompt", "")
    # Noise is drawn on the host, so that one seed gives the same noise on every device.
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    times: list[float] = []

    goes_on_with: dict[str, Tensor] = {}

    def note(_: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        goes_on_with["latents"] = tensors["latents"]  # a pipeline may alter what the solver returned
        return tensors

    def end_of_step(_: int) -> None:
        hardware.synchronize()
        times.append(time.perf_counter())
        on_step()

    arguments: dict[str, Any] = {
        **model,  # what the pipeline has an argument of the same name for
        "prompt": [apply_template(model, prompt) for prompt in prompts],
        "negative_prompt": None if negative is None else [negative] * len(prompts),
        "num_inference_steps": sampler["num_sampling_steps"],
        "guidance_scale": sampler["guidance_scale"],
        "guidance_batch": sampler["guidance_batch"],
        "generator": generators if len(generators) > 1 else generators[0],
        "output_type": "np" if decode else "latent",
        "callback_on_step_end": note,
        "use_resolution_binning": False,  # the size is the one that is asked for
        "frame_rate": model.get("fps"),
        **model.get("call", {}),
    }
    known, ours = inspect.signature(pipeline.__call__).parameters, is_ours(pipeline)
    # To a pipeline of ours null means what its documentation says, to a foreign one the pipeline's own default.
    nulls = model.keys() if ours else ()
    arguments = {name: value for name, value in arguments.items() if value is not None or name in nulls}
    if config["parallel"]["cfg"] and not ours:
        raise ValueError(
            f"{type(pipeline).__name__} cannot run its branches of guidance apart: parallel.cfg needs that"
        )
    if timesteps is None and sampler["schedule"] is not None:
        timesteps = schedules.timesteps(Path(sampler["schedule"]))
    if timesteps is not None and ours:
        arguments["timesteps"] = timesteps
    if latents is not None:  # the pipeline scales what it is given, where its scheduler does
        pipeline.scheduler.set_timesteps(timesteps=timesteps)
        arguments["latents"] = latents / float(getattr(pipeline.scheduler, "init_noise_sigma", 1.0))
    if hasattr(pipeline.scheduler, "follow_paths"):  # the others draw no noise, or the desk has refused paths
        pipeline.scheduler.follow_paths(seeds if sampler["noise"] == "path" else None, config["recording"]["steps"])
    pipeline.set_progress_bar_config(disable=True)  # the stage has one bar for all its clips
    hardware.synchronize()
    start = time.perf_counter()
    with (
        torch.inference_mode(),
        sharing.split(pipeline.transformer),
        schedules.taken(pipeline.scheduler, None if ours else timesteps),
        noise_drawn_in(model, pipeline.transformer.dtype),
        nullcontext(steps) if steps is not None else Steps(pipeline) as steps,
    ):
        steps.after.append(end_of_step)
        try:
            output = pipeline(**{name: value for name, value in arguments.items() if name in known})
        finally:
            steps.after.remove(end_of_step)
    hardware.synchronize()
    end = time.perf_counter()
    final = goes_on_with.get("latents", steps.latents)
    assert final is not None
    return Generation(
        latents=final.cpu(),
        frames=_frames(output) if decode else torch.empty(0),
        step_seconds=[b - a for a, b in zip(times, times[1:], strict=False)],
        decode_seconds=end - times[-1],
        seconds=end - start,
    )


@contextmanager
def noise_drawn_in(model: Mapping[str, Any], compute: torch.dtype) -> Iterator[None]:
    """Have noise drawn in the weights' dtype where a machine computes in another, so that a seed gives the same clip.

    It is done for models whose reference draws noise in what it computes in (their rules say so): torch draws other
    numbers in bfloat16 than in float32. Every draw goes through torch.randn, of the pipeline and of its solver.
    """
    dtype, randn = DTYPES[model["dtype"]], torch.randn
    if dtype == compute or not rules_of(model).NOISE_IN_DTYPE:
        yield
        return

    def draw(*size: Any, **options: Any) -> Tensor:
        if options.get("generator") is None or options.get("dtype") != compute:
            return randn(*size, **options)
        return randn(*size, **{**options, "dtype": dtype}).to(compute)

    torch.randn = draw
    try:
        yield
    finally:
        torch.randn = randn


def _frames(output: Any) -> Tensor:
    """What a pipeline returned, images or videos, in 8 bits: uint8 [B,T,H,W,3]."""
    frames = torch.as_tensor(np.asarray(output.frames if hasattr(output, "frames") else output[0]))
    if frames.ndim == 4:
        frames = frames[:, None]
    if frames.dtype != torch.uint8:
        frames = frames.float().clamp(0, 1).mul(255).round().to(torch.uint8)
    return frames


class Clock:
    """Collects the times of generations: seconds a clip end to end, a denoising step, and decoding.

    The first generation of a process warms it up (kernels are chosen, weights laid out); it counts only if it is alone.
    """

    def __init__(self) -> None:
        self._timed: list[tuple[float, list[float], float]] = []

    def add(self, generation: Generation, clips: int) -> None:
        seconds, decoding = generation.seconds / clips, generation.decode_seconds / clips
        self._timed.append((seconds, generation.step_seconds, decoding))

    def summary(self) -> dict[str, Any]:
        """Medians with quartiles; steps are seconds a step of one batch, the others seconds a clip."""
        timed = self._timed[1:] or self._timed
        return {
            "warmed_up": len(self._timed) > 1,
            "clip_seconds": spread([seconds for seconds, _, _ in timed]),
            "step_seconds": spread([step for _, steps, _ in timed for step in steps]),
            "decode_seconds": spread([decoding for _, _, decoding in timed]),
        }


def spread(values: Sequence[float]) -> dict[str, float | int]:
    """Median, quartiles and count of some measurements ({} of none)."""
    if not values:
        return {}
    q25, q50, q75 = torch.tensor(values, dtype=torch.float64).quantile(
        torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    )
    return {"median": float(q50), "p25": float(q25), "p75": float(q75), "n": len(values)}


def frame_rate(config: Mapping[str, Any]) -> float:
    """Frames a second of a saved clip. Models of images have none: one frame is no video."""
    return float(config["model"].get("fps", 1))


def save_part(generation: Generation, row: int, folder: Path, video: Path | None, fps: float) -> list[Path]:
    """Write clip `row` of a batch: latents and frames into `folder`, and the clip to watch at `video` (plus suffix).

    What was written outside of `folder` is returned. FloatingPointError for latents that are not finite: such a clip is
    black, and ranges or searches made of it mean nothing.
    """
    latents = generation.latents[row : row + 1].contiguous()
    if not latents.isfinite().all():
        raise FloatingPointError(
            "the latents of a clip are not finite: the model overflows in its dtype; try model.dtype=bf16 or fp32"
        )
    save_file({"latents": latents}, folder / "latents.safetensors")
    frames = generation.frames[row].contiguous()
    save_file({"frames": frames}, folder / "frames.safetensors")
    if video is None:
        return []
    video.parent.mkdir(parents=True, exist_ok=True)
    return [save_clip(frames.numpy(), video, fps)]


def race(
    reference: nn.Module, other: nn.Module, call: dict[str, Tensor], hardware: Hardware, warmup: int, repeats: int
) -> dict[str, Any]:
    """Time one step of two transformers on the same call, in turn: seconds of each, and the ratio pair by pair.

    A ratio above 1 says that `other` is the faster one. "relative_error" of their outputs stands beside it: a speed
    counts only for two models that compute the same.
    """
    times: dict[str, list[float]] = {"float": [], "quantized": []}
    outputs: dict[str, Tensor] = {}
    with torch.inference_mode():
        for turn in range(warmup + repeats):
            for name, model in (("float", reference), ("quantized", other)):
                hardware.synchronize()
                start = time.perf_counter()
                outputs[name] = model(**call, return_dict=False)[0]
                hardware.synchronize()
                if turn >= warmup:
                    times[name].append(time.perf_counter() - start)
    ratios = spread([a / b for a, b in zip(times["float"], times["quantized"], strict=True)])
    wanted, got = outputs["float"].float(), outputs["quantized"].float()
    return {
        "step_seconds": {name: spread(values) for name, values in times.items()} | {"ratio": ratios},
        "relative_error": float((got - wanted).norm() / wanted.norm()),
    }
