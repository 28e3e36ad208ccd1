"""Train the small Stable Diffusion 3: its autoencoder on stills, then its transformer with both text encoders."""

from __future__ import annotations

from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runner.embedded import world
from runner.embedded.training.heads import KINDS, cells, words_said
from runner.embedded.training.journal import Journal, learning_rate, random_of, train, train_average
from runner.embedded.training.scores import scores
from runner.embedded.training.sd3 import (
    SHIFT,
    TextToImage,
    build_vae,
    draw,
    held_out_stills,
    make_pipeline,
    reconstruct,
    scaled,
    to_images,
)
from runner.embedded.training.text import build_clip_tokenizer
from runner.embedded.training.train_transformer import TransformerPlan
from runner.embedded.training.train_vae import VAEPlan, autoencode, autoencoder_optimizer, decibels
from runner.hardware.casting import autocast

VAE_PLAN = VAEPlan(phases=((1, 8, 600),))
PLAN = TransformerPlan(iterations=8000, batch=32, rate=1.5e-3, clips=40, check_prompts=60)


def train_vae(folder: Path, device: torch.device, plan: VAEPlan, minutes: float | None = None) -> Any:
    """Train, or go on where the folder stands. The scaled autoencoder, or None when `minutes` ended before the plan."""
    torch.manual_seed(plan.seed)
    vae = build_vae().to(device)
    optimizer, held_out = autoencoder_optimizer(vae, plan.rate), [still for still, _ in held_out_stills(16)]
    chosen = world.combinations("seen", world.PLACES)

    def step(iteration: int) -> dict[str, float]:
        rng, noise = random_of(plan.seed, iteration)
        _, count = plan.batch(iteration)
        images = to_images((world.still(chosen[rng.integers(len(chosen))], rng) for _ in range(count)), device)
        rate = learning_rate(plan.rate, iteration, plan.iterations)
        return {"loss": autoencode(vae.encode, lambda z: vae.decode(z).sample, optimizer, images, noise, rate, plan.kl)}

    def check() -> dict[str, float]:
        outputs = reconstruct(vae, held_out)
        return {"psnr_db": float(np.median([decibels(*pair) for pair in zip(outputs, held_out, strict=True)]))}

    parts = {"model": vae, "optimizer": optimizer}
    done = train(Journal(folder, "vae"), parts, plan.iterations, step, check, plan.check, minutes)
    return scaled(vae.eval()) if done else None


@torch.no_grad()
def encode_stills(vae: Any, plan: TransformerPlan, path: Path) -> dict[str, Tensor]:
    """Scaled mean and deviation [seen captions, stills, 16, h, w] of fresh stills' latents, and the cells that their
    shapes cover [seen captions, stills, tokens, cells]; kept at `path`."""
    if path.exists():
        return torch.load(path, weights_only=True)
    rng, found, covered = np.random.default_rng([plan.seed, 7]), [], []
    for attributes in world.combinations("seen", world.PLACES):
        scenes = [world.scene(attributes, rng) for _ in range(plan.clips)]
        covered.append(torch.stack([cells(scene, 1) for scene in scenes]))
        images = to_images((world.render(scene, slice(0, 1))[0] for scene in scenes), vae.device)
        with autocast(vae.device):
            found.append([vae.encode(some).latent_dist for some in images.split(16)])
    means, deviations = (
        torch.stack([torch.cat([getattr(each, name).float().cpu() for each in row]) for row in found])
        for name in ("mean", "std")
    )
    shift, factor = vae.config.shift_factor, vae.config.scaling_factor
    data = {"mean": (means - shift) * factor, "deviation": deviations * factor, "cells": torch.stack(covered)}
    torch.save(data, path)
    return data


def shortened(attributes: world.Attributes) -> list[str]:
    """The caption without none, some or all of color, shape and place; the whole one is the last."""
    shape, color, place = attributes
    choices = product(("", color), ("", shape), ("", place))
    return [" ".join(filter(None, ("a", *words))) for words in choices]


def train_transformer(
    folder: Path, vae: Any, device: torch.device, plan: TransformerPlan, minutes: float | None = None
) -> TextToImage | None:
    """Train, or go on where the folder stands. The moving average, or None when `minutes` ended before the plan."""
    tokenizer = build_clip_tokenizer()
    torch.manual_seed(plan.seed)
    model = TextToImage(len(tokenizer)).to(device)
    data = {name: each.to(device) for name, each in encode_stills(vae, plan, folder / "latents.pt").items()}
    texts = [text for each in world.combinations("seen", world.PLACES) for text in shortened(each)]
    ids = tokenizer([*texts, ""], padding="max_length", truncation=True, return_tensors="pt").input_ids.to(device)
    losses = partial(_losses, model, data, ids, plan)

    def check(average: TextToImage) -> dict[str, float]:
        generate = partial(draw, make_pipeline(vae, average), steps=plan.check_steps, guidance=plan.guidance)
        return scores(generate, plan.check_prompts, plan.seed, world.PLACES)

    return train_average(Journal(folder, "transformer"), model, plan, losses, check, minutes)


def _losses(
    model: TextToImage, data: dict[str, Tensor], ids: Tensor, plan: TransformerPlan, iteration: int
) -> dict[str, Tensor]:
    """Flow matching: of the velocity from latents to noise, at the noise levels that the sampler's even steps have; and
    the heads', weighted."""
    _, generator = random_of(plan.seed, iteration)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(plan.batch, *shape, generator=generator)

    device, (captions, stills) = ids.device, data["mean"].shape[:2]
    caption, still = (uniform() * captions).long(), (uniform() * stills).long()
    level = (torch.arange(plan.batch) + uniform()) / plan.batch  # one in each of equal strata
    level = (SHIFT * level / (1 + (SHIFT - 1) * level)).to(device)
    noise = torch.randn(2, plan.batch, *data["mean"].shape[2:], generator=generator).to(device)
    latents = data["mean"][caption, still] + data["deviation"][caption, still] * noise[0]
    sigma = level.view(-1, 1, 1, 1)
    # Words are left out so that each comes to mean something by itself: whole captions would be learned by heart.
    told = uniform(3) >= plan.words
    told[:, 0] = True  # shapes are hard enough
    wordless = uniform() < plan.dropout
    shown = torch.where(wordless, len(ids) - 1, 8 * caption + told.long() @ torch.tensor([2, 4, 1]))
    words = torch.where(~told | wordless[:, None], torch.tensor(KINDS) - 1, words_said("seen", world.PLACES)[caption])
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        predicted = model((1 - sigma) * latents + sigma * noise[1], 1000 * level, ids[shown]).float()
    return {
        "loss": ((predicted - (noise[1] - latents)) ** 2).mean(),
        "told_loss": plan.reading * model.told.loss(words[:, None]),
        "drawn_loss": plan.drawing * model.drawn.loss(data["cells"][caption, still]),
    }
