"""Clips and stills of the little world asked of a pipeline, and how many of them the judge finds right."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from runner.embedded import world
from runner.embedded.judge import judge
from runner.embedded.training.train_vae import decibels, held_out_clips, to_frames
from runner.hardware.casting import autocast
from runner.model.checkpoints import EMBEDDED_FOLDER
from runner.model.osp12.pipeline import OSP12Pipeline
from runner.sampler import make_scheduler

STEPS = {"osp12": 100, "sd3": 28, "opensora12": 30}
SHIPPED = {name: EMBEDDED_FOLDER / name for name in STEPS}


def right(
    generate: Callable[..., Iterable[np.ndarray]], captions: Sequence[str], seed: int, batch: int = 24
) -> np.ndarray:
    """Which of (shape, color, motion or place) the judge finds right in what is generated, bool [N, 3].

    `generate(captions, generators=...)` gives a clip or still, uint8 [T, H, W, 3], of each caption; number i has the
    noise of `seed + i`, whatever the batch.
    """
    found = []
    for start in range(0, len(captions), batch):
        texts = list(captions[start : start + batch])
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(texts))]
        for clip, text in zip(generate(texts, generators=generators), texts, strict=True):
            found.append([a == b for a, b in zip(judge(clip), world.parse(text), strict=True)])
    return np.array(found)


def scores(
    generate: Callable[..., Iterable[np.ndarray]], count: int, seed: int, motions: tuple[str, ...] = world.MOTIONS
) -> dict[str, float]:
    """Of `count` clips of either split: the share of what `right` finds right, and of clips that are all right."""
    found = {split: right(generate, spread(split, count, seed, motions), seed) for split in ("seen", "unseen")}
    shares = {split: {"score": each.mean(), "all_right": each.all(1).mean()} for split, each in found.items()}
    return {f"{split}_{name}": float(share) for split, each in shares.items() for name, share in each.items()}


@torch.no_grad()
def ask(
    pipeline: Any,
    captions: Sequence[str],
    steps: int,
    guidance: float,
    generators: list[torch.Generator],
    **more: Any,
) -> Any:
    """What a pipeline answers to these captions at the world's size; `more` goes to it as it is."""
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        prompt=list(captions),
        height=world.SIZE,
        width=world.SIZE,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=generators,
        **more,
    )


def film(pipeline: OSP12Pipeline, captions: Sequence[str], **asked: Any) -> Iterator[np.ndarray]:
    """A clip of each caption, uint8 [T, H, W, 3]; `asked` as `ask` takes it."""
    own: Any = {"negative_prompt": "", "num_frames": world.FRAMES, "max_sequence_length": 16, "return_dict": False}
    (latents,) = ask(pipeline, captions, **asked, **own, output_type="latent")
    return (decode(pipeline.vae, each[None]) for each in torch.as_tensor(latents))


def decode(vae: Any, latents: torch.Tensor) -> np.ndarray:
    """One clip, uint8 [T, H, W, 3], of scaled latents [1, 4, t, h, w]."""
    with torch.no_grad(), autocast(vae.device):
        return to_frames(vae.decode(latents.to(vae.dtype) / vae.scaling_factor))[0]


def make_pipeline(transformer: Any, text_encoder: Any, tokenizer: Any, vae: Any) -> OSP12Pipeline:
    """The parts under the ancestral Euler sampler."""
    scheduler = make_scheduler("EulerAncestralDiscrete")
    return OSP12Pipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, transformer=transformer, scheduler=scheduler
    )


def spread(split: str, count: int, seed: int, motions: tuple[str, ...] = world.MOTIONS) -> list[str]:
    """`count` captions of a split, or of stills': all of them in turn, in a shuffled order."""
    captions, rng = world.captions(split, motions), np.random.default_rng(seed)
    return [captions[i] for _ in range(-(-count // len(captions))) for i in rng.permutation(len(captions))][:count]


def reconstructions(through: Callable[[list[np.ndarray]], list[np.ndarray]], count: int) -> tuple[Any, Any]:
    """Held-out clips `through` an autoencoder, and what they are of, with captions."""
    held_out = held_out_clips(count)
    return through([clip for clip, _ in held_out]), held_out


def reconstruction_figures(
    outputs: Sequence[np.ndarray], held_out: Sequence[tuple[np.ndarray, str]]
) -> dict[str, float]:
    """PSNR (median, mean, 5th percentile) and the judge's share of fully right reconstructions, [T, H, W, 3]."""
    psnr = [decibels(output, clip) for output, (clip, _) in zip(outputs, held_out, strict=True)]
    as_told = [judge(output) == world.parse(text) for output, (_, text) in zip(outputs, held_out, strict=True)]
    return {
        "psnr_db_median": float(np.median(psnr)),
        "psnr_db_mean": float(np.mean(psnr)),
        "psnr_db_p5": float(np.percentile(psnr, 5)),
        "judge_right": float(np.mean(as_told)),
        "clips": len(outputs),
    }
