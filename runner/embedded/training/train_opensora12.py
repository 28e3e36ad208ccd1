"""Train the small Open-Sora 1.2: its autoencoder on stills and clips, then its transformer with the text encoder."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from runner.embedded import world
from runner.embedded.training.heads import KINDS, WORDS, cells, places, words_said
from runner.embedded.training.journal import Journal, learning_rate, random_of, train, train_average
from runner.embedded.training.opensora12 import GRID, TextToVideo, build_vae, film, reconstruct
from runner.embedded.training.scores import scores
from runner.embedded.training.text import build_tokenizer, tokenize
from runner.embedded.training.train_transformer import TransformerPlan
from runner.embedded.training.train_vae import (
    VAEPlan,
    autoencode,
    autoencoder_optimizer,
    decibels,
    held_out_clips,
    sample_window,
    to_video,
)
from runner.hardware.casting import autocast
from runner.model.opensora12.pipeline import OpenSora12Pipeline
from runner.model.opensora12.scheduler import START, RFlowScheduler
from runner.model.opensora12.scheduler import timesteps as sampled_timesteps
from runner.model.opensora12.vae import OpenSora12VAE

# Stills for the 2D half, then latents of frames for the 3D half. Trained together on whole clips they were at 21 dB
# after twice the time: each shifts what the other has just learned.
VAE_PLAN = VAEPlan(phases=((1, 8, 1000), (world.FRAMES, 4, 1000)))
PLAN = TransformerPlan(iterations=7000, batch=32, rate=1.2e-3, clips=16)
LONG = 2 * world.FRAMES  # frames of every third batch
# At so few pixels the release's schedule is through with its noisy end after a tenth of its steps, which is where
# latents of deviation 1 settle what a clip shows. Smaller ones put that off (Chen 2023, arXiv 2301.10972).
DEVIATION = 0.15
# Which latent frames are given in training, and how often; the release trains with more kinds.
GIVEN = {"first": 0.2, "last": 0.03, "first and last": 0.03, "half": 0.06, "some": 0.03}


def train_vae(folder: Path, device: torch.device, plan: VAEPlan, minutes: float | None = None) -> OpenSora12VAE | None:
    """Train, or go on where the folder stands. The scaled autoencoder, or None when `minutes` ended before the plan."""
    torch.manual_seed(plan.seed)
    vae = build_vae()
    vae.to(device)  # type: ignore[arg-type]  # diffusers wraps `to` without its types
    optimizer, held_out = autoencoder_optimizer(vae, plan.rate), [clip for clip, _ in held_out_clips(8)]

    @cache  # once the 2D half is trained
    def normalized() -> tuple[Tensor, Tensor]:
        """What `frame_latents` gives, by channel at deviation 1, and their deviations."""
        latents = frame_latents(vae, plan.seed)
        deviation = latents.std((0, 2, 3, 4)).view(1, -1, 1, 1, 1)
        return latents / deviation, deviation

    def step(iteration: int) -> dict[str, float]:
        rng, noise = random_of(plan.seed, iteration)
        phase, within = plan.phase(iteration)
        frames, clips, iterations = plan.phases[phase]
        rate = learning_rate(plan.rate, within, iterations)
        if frames == 1:
            stills = to_video([sample_window(rng, 1) for _ in range(clips)], device)[:, :, 0]
            encode, decode = vae.spatial.encode, lambda z: vae.spatial.decode(z).sample
            return {"loss": autoencode(encode, decode, optimizer, stills, noise, rate, plan.kl)}
        latents, deviation = normalized()
        if iteration % 4 == 0:  # the image of a reference is a clip of one frame
            frames = 1
        chosen = latents[rng.integers(len(latents), size=clips), :, :frames]
        encode = lambda z: SimpleNamespace(latent_dist=vae.temporal_vae.encode(z * deviation))  # noqa: E731
        decode = lambda z: vae.temporal_vae.decode(z, frames) / deviation  # noqa: E731
        loss = autoencode(encode, decode, optimizer, chosen, noise, rate, plan.kl)
        if iteration + 1 == plan.iterations:
            scale_latents(vae)
        return {"loss": loss}

    def check() -> dict[str, float]:
        psnr = [decibels(*pair) for pair in zip(reconstruct(vae, held_out), held_out, strict=True)]
        return {"psnr_db": float(np.median(psnr))}

    parts = {"model": vae, "optimizer": optimizer}
    done = train(Journal(folder, "vae"), parts, plan.iterations, step, check, plan.check, minutes)
    return vae.eval() if done else None


@torch.no_grad()
def frame_latents(vae: OpenSora12VAE, seed: int, clips: int = 300) -> Tensor:
    """What the 3D half gets of so many clips: the scaled means of each frame's latents, [clips, 4, 17, h, w]."""
    rng, found = np.random.default_rng([seed, 8]), []
    for _ in range(clips):
        video = to_video([sample_window(rng, world.FRAMES)], vae.device)
        with autocast(vae.device):
            frames = vae.spatial.encode(video[0].transpose(0, 1)).latent_dist.mean
        found.append(frames.float().transpose(0, 1) * vae.scaling_factor)
    return torch.stack(found)


@torch.no_grad()
def scale_latents(vae: OpenSora12VAE) -> None:
    """Let shift and scale bring each channel of the latents to mean 0 and DEVIATION."""
    latents = torch.cat(
        [vae.encode(to_video([clip], vae.device), sample_posterior=False) for clip, _ in held_out_clips(48, seed=2)]
    )
    dims = (0, 2, 3, 4)
    vae.shift += latents.mean(dims).view_as(vae.shift) * vae.scale
    vae.scale *= latents.std(dims).view_as(vae.scale) / DEVIATION


@torch.no_grad()
def encode_clips(vae: OpenSora12VAE, plan: TransformerPlan, path: Path) -> dict[str, Tensor]:
    """Latents of fresh clips of each seen caption, [captions, clips, 4, t, h, w], kept at `path`: `short` of 17 frames
    and half as many `long` of 34, and of each one's first frame alone, as a reference is encoded; and the cells that
    their shapes cover."""
    if path.exists():
        return torch.load(path, weights_only=True)
    rng, noise = random_of(plan.seed, 7)
    found: dict[str, Tensor] = {}
    for name, frames, count in (("short", world.FRAMES, plan.clips), ("long", LONG, -(-plan.clips // 2))):
        rows, firsts, covered = [], [], []
        for attributes in world.SEEN:
            for _ in range(count):
                scene = world.scene(attributes, rng)
                covered.append(cells(scene, frames)[None])
                clip = to_video([world.render(scene, frames=frames)], vae.device)
                with autocast(vae.device):
                    rows.append(vae.encode(clip, noise).cpu())
                    firsts.append(vae.encode(clip[:, :, :1], noise).cpu())
        for key, latents in ((name, rows), (f"{name}_first", firsts), (f"{name}_cells", covered)):
            found[key] = torch.cat(latents).unflatten(0, (len(world.SEEN), count))
    torch.save(found, path)
    return found


def train_transformer(
    folder: Path, vae: OpenSora12VAE, device: torch.device, plan: TransformerPlan, minutes: float | None = None
) -> TextToVideo | None:
    """Train, or go on where the folder stands. The moving average, or None when `minutes` ended before the plan."""
    tokenizer = build_tokenizer()
    torch.manual_seed(plan.seed)
    model = TextToVideo(len(tokenizer)).to(device)
    data = {name: each.to(device) for name, each in encode_clips(vae, plan, folder / "latents.pt").items()}
    ids, mask = (each.to(device) for each in tokenize(tokenizer, world.captions("seen")))
    losses = partial(_losses, model, data, ids, mask, plan)

    def check(average: TextToVideo) -> dict[str, float]:
        parts = vae, average.text_encoder, tokenizer, average.transformer, RFlowScheduler()
        generate = partial(film, OpenSora12Pipeline(*parts), steps=plan.check_steps, guidance=plan.guidance)
        return scores(generate, plan.check_prompts, plan.seed)

    return train_average(Journal(folder, "transformer"), model, plan, losses, check, minutes)


def _losses(
    model: TextToVideo, data: dict[str, Tensor], ids: Tensor, mask: Tensor, plan: TransformerPlan, iteration: int
) -> dict[str, Tensor]:
    """Of the velocity of frames that are noisy, at the timesteps that the sampler has for clips of this size; and the
    heads', weighted."""
    _, generator = random_of(plan.seed, iteration)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(plan.batch, *shape, generator=generator)

    name, frames = ("long", LONG) if iteration % 3 == 2 else ("short", world.FRAMES)
    device, (captions, clips) = ids.device, data[name].shape[:2]
    caption, clip = (uniform() * captions).long(), (uniform() * clips).long()
    latents = data[name][caption, clip]
    given = given_frames(uniform(), uniform(latents.shape[2]))
    alone = (given[:, 0] & ~given[:, 1]).to(device).view(-1, 1, 1, 1, 1)  # a given first frame is encoded by itself
    latents[:, :, :1] = torch.where(alone, data[f"{name}_first"][caption, clip], latents[:, :, :1])
    grid = sampled_timesteps(1000, world.SIZE, world.SIZE, frames)
    strata = (torch.arange(plan.batch) + uniform()) / plan.batch  # one in each of equal strata
    timestep = grid[(strata * len(grid)).long()].to(device)

    share = (timestep / START).view(-1, 1, 1, 1, 1)
    active = ~given.to(device)
    noise = torch.randn(latents.shape, generator=generator).to(device)
    noisy = torch.where(active[:, None, :, None, None], (1 - share) * latents + share * noise, latents)
    # Hidden words, see train_transformer. The embedding of no text comes with the mask of a prompt.
    told = uniform(4) >= plan.words
    told[:, [0, 3]] = True
    wordless = uniform() < plan.dropout
    told[wordless] = True
    seen = mask[caption] * told[:, WORDS].to(device)
    hidden = ~told[:, :3] | wordless[:, None]
    words = torch.where(hidden, torch.tensor(KINDS) - 1, words_said("seen")[caption])
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        predicted = model(noisy, timestep, ids[caption], seen, wordless.to(device), active).float()
    # One over what a linear guess leaves of the velocity's variance (Karras 2022, arXiv 2206.00364, equation 8): every
    # timestep begins with a loss of 1, and what a clip shows is settled where noise drowns it.
    weight = (share**2 + ((1 - share) * DEVIATION) ** 2) / DEVIATION**2
    error = (weight * (predicted - (latents - noise)) ** 2).mean((1, 3, 4))
    return {
        "loss": (error * active).sum() / active.sum(),
        "place_loss": plan.position * model.place.loss(places(latents.shape[2], *GRID)),
        "told_loss": plan.reading * model.told.loss(words[:, None]),
        "drawn_loss": plan.drawing * model.drawn.loss(data[f"{name}_cells"][caption, clip]),
    }


def given_frames(kind: Tensor, each: Tensor) -> Tensor:
    """Which latent frames are given, bool [B, t], by uniform numbers: one for the kind [B], one each frame [B, t]."""
    given, frames, low = torch.zeros(each.shape, dtype=torch.bool), each.shape[1], 0.0
    first, last = torch.arange(frames) == 0, torch.arange(frames) == frames - 1
    half = torch.arange(frames) < frames // 2
    for name, share in GIVEN.items():
        rows = {"first": first, "last": last, "first and last": first | last, "half": half, "some": each < 0.3}[name]
        chosen = (kind >= low) & (kind < low + share)
        given = torch.where(chosen[:, None], rows, given)
        low += share
    given[given.all(1)] = False
    return given
