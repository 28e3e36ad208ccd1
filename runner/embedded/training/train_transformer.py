"""Train the small diffusion transformer together with its text encoder, on latents computed once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from runner.embedded import world
from runner.embedded.training.heads import KINDS, WORDS, Asked, Drawn, cells, places, words_said
from runner.embedded.training.journal import Journal, random_of, train_average
from runner.embedded.training.scores import film, make_pipeline, scores
from runner.embedded.training.text import build_encoder, build_tokenizer, tokenize
from runner.embedded.training.train_vae import to_video
from runner.hardware.casting import autocast
from runner.model.osp12.transformer import OSP12Transformer
from runner.model.osp12.vae import OSP12VAE


@dataclass(frozen=True)
class TransformerPlan:
    """`clips` of every seen caption are encoded once; `check` counts iterations between evaluations by the judge."""

    iterations: int = 6500
    batch: int = 32
    rate: float = 1.2e-3
    clips: int = 48
    dropout: float = 0.1  # of captions, for guidance
    words: float = 0.25  # share of colors and motions that are hidden, each by itself
    decay: float = 0.999  # of the moving average
    check: int = 500
    check_prompts: int = 48  # of each split; of 24, two in a row were 12 points above the truth
    check_steps: int = 20
    guidance: float = 2.0
    position: float = 0.01  # weight of the loss that teaches where a token is, where no embedding says it
    reading: float = 0.1  # weight of the loss that teaches what the caption says
    drawing: float = 0.1  # weight of the loss that teaches which part of the frame the shape covers
    seed: int = 1


class TextToVideo(nn.Module):
    """What is trained jointly: the transformer, its text encoder, and the heads that ask its tokens."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        heads, head_dim, text_width = 4, 36, 64
        self.text_encoder = build_encoder(vocabulary, text_width)
        self.transformer = OSP12Transformer(
            num_attention_heads=heads,
            attention_head_dim=head_dim,
            num_layers=12,
            cross_attention_dim=heads * head_dim,
            caption_channels=text_width,
            sample_size=[world.SIZE // 8, world.SIZE // 8],
            sample_size_t=(world.FRAMES - 1) // 4 + 1,
            interpolation_scale_t=0.5,
            interpolation_scale_h=0.5,
            interpolation_scale_w=0.5,
        )
        nn.init.zeros_(self.transformer.proj_out.weight)
        nn.init.zeros_(self.transformer.proj_out.bias)
        grid = ((world.FRAMES - 1) // 4 + 1, world.SIZE // 16, world.SIZE // 16)
        early, late = (self.transformer.transformer_blocks[i] for i in (3, 7))
        self.place, self.told = Asked(heads * head_dim, grid, early), Asked(heads * head_dim, KINDS, early)
        self.drawn = Drawn(heads * head_dim, late)

    def forward(self, noisy: Tensor, timestep: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Noise [B,4,t,h,w] of noisy latents at integer timesteps [B], under captions [B,L]."""
        text = self.text_encoder(input_ids=ids, attention_mask=mask)[0]
        return self.transformer(noisy, timestep, text[:, None], encoder_attention_mask=mask[:, None]).sample


@torch.no_grad()
def encode_clips(vae: OSP12VAE, plan: TransformerPlan, path: Path) -> dict[str, Tensor]:
    """Scaled mean and deviation [seen captions, clips, 4, t, h, w] of fresh clips' latents, which are kept at `path`,
    and the cells that their shapes cover."""
    rng = np.random.default_rng([plan.seed, 7])
    scenes = [[world.scene(each, rng) for _ in range(plan.clips)] for each in world.SEEN]
    covered = torch.stack([torch.stack([cells(scene) for scene in row]) for row in scenes])
    if path.exists():
        return {**torch.load(path, weights_only=True), "cells": covered}
    means, deviations = [], []
    for row in scenes:
        with autocast(vae.device):
            latents = [vae.encode(to_video([world.render(scene)], vae.device)).latent_dist for scene in row]
        means.append(torch.cat([each.mean.float().cpu() for each in latents]) * vae.scaling_factor)
        deviations.append(torch.cat([each.std.float().cpu() for each in latents]) * vae.scaling_factor)
    data = {"mean": torch.stack(means), "deviation": torch.stack(deviations)}
    torch.save(data, path)
    return {**data, "cells": covered}


def train_transformer(
    folder: Path, vae: OSP12VAE, device: torch.device, plan: TransformerPlan, minutes: float | None = None
) -> TextToVideo | None:
    """Train, or go on where the folder stands. The moving average, or None when `minutes` ended before the plan."""
    journal, tokenizer = Journal(folder, "transformer"), build_tokenizer()
    torch.manual_seed(plan.seed)
    model = TextToVideo(len(tokenizer)).to(device)
    data = {name: each.to(device) for name, each in encode_clips(vae, plan, folder / "latents.pt").items()}
    ids, mask = (each.to(device) for each in tokenize(tokenizer, [*world.captions("seen"), ""]))
    losses = partial(_losses, model, data, ids, mask, plan)

    def check(average: TextToVideo) -> dict[str, float]:
        pipeline = make_pipeline(average.transformer, average.text_encoder, tokenizer, vae)
        generate = partial(film, pipeline, steps=plan.check_steps, guidance=plan.guidance)
        return scores(generate, plan.check_prompts, plan.seed)

    return train_average(journal, model, plan, losses, check, minutes)


def noise_levels() -> Tensor:
    """Share of signal power, [1000], of the release's linear betas."""
    return torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)


def _losses(
    model: TextToVideo, data: dict[str, Tensor], ids: Tensor, mask: Tensor, plan: TransformerPlan, iteration: int
) -> dict[str, Tensor]:
    """Of the noise, weighted by its share; and the heads', weighted."""
    _, generator = random_of(plan.seed, iteration)

    def uniform() -> Tensor:
        return torch.rand(plan.batch, generator=generator)

    device, (captions, clips) = ids.device, data["mean"].shape[:2]
    caption, clip = (uniform() * captions).long(), (uniform() * clips).long()
    timestep = ((torch.arange(plan.batch) + uniform()) / plan.batch * 1000).long()  # one in each of equal strata
    noise = torch.randn(2, plan.batch, *data["mean"].shape[2:], generator=generator).to(device)
    latents = data["mean"][caption, clip] + data["deviation"][caption, clip] * noise[0]
    signal = noise_levels()[timestep].to(device).view(-1, 1, 1, 1, 1)
    noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise[1]
    shown = torch.where(uniform() < plan.dropout, captions, caption)  # the last row is the empty caption
    # Each word has to mean something by itself. Otherwise whole captions are learnt by heart, and a cross whose color
    # and motion were never seen together on a cross is drawn as another shape.
    told = torch.rand(plan.batch, 4, generator=generator) >= plan.words
    told[:, [0, 3]] = True
    seen = mask[shown] * told[:, WORDS].to(device)
    hidden = ~told[:, :3] | (shown == captions)[:, None]
    words = torch.where(hidden, torch.tensor(KINDS) - 1, words_said("seen")[caption])

    # On a CPU the casts of so small a model cost more than bfloat16 saves.
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        predicted = model(noisy, timestep.to(device), ids[shown], seen).float()
    # What a clip shows is decided where noise drowns it: there the error is small and has to count for more.
    weight = ((1 - signal) / signal).sqrt().clamp(0.25, 12.0)
    heads = {
        "place_loss": plan.position * model.place.loss(places(*model.place.sizes)),
        "told_loss": plan.reading * model.told.loss(words[:, None]),
        "drawn_loss": plan.drawing * model.drawn.loss(data["cells"][caption, clip]),
    }
    return {"loss": (weight * (predicted - noise[1]) ** 2).mean(), **heads}
