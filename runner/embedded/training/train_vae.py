"""Train the small causal autoencoder on rendered clips, then scale its latents to the pipeline's constant."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runner.embedded import world
from runner.embedded.training.journal import Journal, learning_rate, random_of, train
from runner.hardware.casting import autocast
from runner.model.osp12.vae import OSP12VAE


@dataclass(frozen=True)
class VAEPlan:
    """Phases of (frames, batch, iterations): stills teach shapes and colors at a fraction of a clip's cost, and the
    last phase is whole clips, because the norms average over a clip."""

    phases: tuple[tuple[int, int, int], ...] = ((1, 8, 1100), (5, 2, 250), (world.FRAMES, 1, 1850))
    rate: float = 2e-3
    kl: float = 2e-5
    check: int = 250
    seed: int = 0

    @property
    def iterations(self) -> int:
        return sum(iterations for _, _, iterations in self.phases)

    def phase(self, iteration: int) -> tuple[int, int]:
        """The number of the phase of an iteration, and the iteration's own in it, from 0."""
        for number, (_, _, iterations) in enumerate(self.phases):
            if iteration < iterations:
                return number, iteration
            iteration -= iterations
        raise IndexError("past the plan's last iteration")

    def batch(self, iteration: int) -> tuple[int, int]:
        """Frames and clips of an iteration."""
        return self.phases[self.phase(iteration)[0]][:2]


# A clip's 1280 latents say the same few things many times over, so at variance 1 the release's schedule would settle
# what moves where within its noisiest tenth, where the predicted noise has to be exact to a thousandth. Smaller latents
# spread these decisions over the schedule (Chen 2023, arXiv 2301.10972).
DEVIATION = 0.3
REFINEMENT = VAEPlan(phases=((world.FRAMES, 1, 1000),), rate=1e-3, kl=0.0, seed=2)  # of the decoder alone


def build_vae() -> OSP12VAE:
    """An untrained autoencoder of the released block types, 32 channels on every level, residual branches at 0."""
    vae = OSP12VAE(hidden_size=32, hidden_size_mult=(1, 1, 1, 1), num_res_blocks=1, resolution=world.SIZE)
    start_quiet(vae, (".conv2.", ".attn_1.proj_out."), _convolution(vae.quant_conv)[1])
    return vae


@torch.no_grad()
def start_quiet(vae: torch.nn.Module, branches: tuple[str, ...], latents: Tensor) -> None:
    """Zero the ends of residual branches, by patterns of names, and lower the log-variances, the second half of the
    bias of what makes the `latents`: at much noise colors drown in it."""
    for name, parameter in vae.named_parameters():
        if any(fnmatch(name, f"*{each}*") for each in branches):
            parameter.zero_()
    latents[len(latents) // 2 :] -= 4.0


def to_video(clips: Iterable[np.ndarray], device: torch.device | str = "cpu") -> Tensor:
    """Clips uint8 [T, H, W, 3] -> video [B, 3, T, H, W] in [-1, 1]."""
    return torch.from_numpy(np.stack(list(clips))).to(device).permute(0, 4, 1, 2, 3).float().contiguous() / 127.5 - 1


def to_frames(video: Tensor) -> np.ndarray:
    """Video [B, 3, T, H, W] -> uint8 [B, T, H, W, 3], truncated as the pipeline does."""
    frames = ((video.float() / 2 + 0.5).clamp(0, 1) * 255).to(torch.uint8)
    return frames.permute(0, 2, 3, 4, 1).cpu().numpy()


def decibels(frames: np.ndarray, reference: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 clips."""
    return float(10 * np.log10(255**2 / max(np.mean((frames.astype(float) - reference) ** 2), 1e-9)))


@torch.no_grad()
def reconstruct(vae: OSP12VAE, clips: Iterable[np.ndarray]) -> list[np.ndarray]:
    """Each clip through the mode of its latents, uint8 [T, H, W, 3]."""
    device, dtype = vae.device, vae.dtype
    with autocast(device):  # weights may be of any dtype
        latents = [vae.encode(to_video([clip], device).to(dtype)).latent_dist.mode() for clip in clips]
        return [to_frames(vae.decode(each))[0] for each in latents]


def held_out_clips(count: int, seed: int = 10**6) -> list[tuple[np.ndarray, str]]:
    """Clips (and captions) of all combinations that no training iteration draws."""
    rng = np.random.default_rng(seed)
    return [world.sample(rng, "all") for _ in range(count)]


def train_vae(folder: Path, device: torch.device, plan: VAEPlan, minutes: float | None = None) -> OSP12VAE | None:
    """Train, or go on where the folder stands. The scaled autoencoder, or None when `minutes` ended before the plan."""
    torch.manual_seed(plan.seed)
    vae = build_vae()
    vae.to(device)  # type: ignore[arg-type]  # diffusers wraps `to` without its types
    return vae.eval() if _train(Journal(folder, "vae"), vae, plan, minutes) else None


def refine_decoder(folder: Path, vae: OSP12VAE, plan: VAEPlan = REFINEMENT, minutes: float | None = None) -> bool:
    """Train the decoder alone, in place, or go on where the folder stands; latents stay what the transformer learned.
    False when `minutes` ended before the plan."""
    vae.encoder.requires_grad_(False)
    if vae.quant_conv is not None:
        vae.quant_conv.requires_grad_(False)
    return _train(Journal(folder, "decoder"), vae, plan, minutes)


def _train(journal: Journal, vae: OSP12VAE, plan: VAEPlan, minutes: float | None) -> bool:
    optimizer = autoencoder_optimizer(vae, plan.rate)
    held_out = [clip for clip, _ in held_out_clips(8)]

    def step(iteration: int) -> dict[str, float]:
        rng, noise = random_of(plan.seed, iteration)
        frames, clips = plan.batch(iteration)
        video = to_video([sample_window(rng, frames) for _ in range(clips)], vae.device)
        rate = learning_rate(plan.rate, iteration, plan.iterations)
        loss = autoencode(vae.encode, vae.decode, optimizer, video, noise, rate, plan.kl)
        if iteration + 1 == plan.iterations and vae.encoder.conv_in.weight.requires_grad:
            scale_latents(vae, (world.sample(np.random.default_rng(i))[0] for i in range(64)))
        return {"loss": loss}

    def check() -> dict[str, float]:
        psnr = [decibels(*pair) for pair in zip(reconstruct(vae, held_out), held_out, strict=True)]
        return {"psnr_db": float(np.median(psnr))}

    return train(journal, {"model": vae, "optimizer": optimizer}, plan.iterations, step, check, plan.check, minutes)


def autoencoder_optimizer(vae: torch.nn.Module, rate: float) -> torch.optim.Optimizer:
    """Of the parameters that are trained."""
    parameters = [each for each in vae.parameters() if each.requires_grad]
    return torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=1e-3)


def autoencode(
    encode: Callable[[Tensor], Any],
    decode: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    pictures: Tensor,
    noise: torch.Generator,
    rate: float,
    kl: float,
) -> float:
    """One step of a variational autoencoder on pictures in [-1, 1], of any shape; its loss.

    `encode` gives an output with a `latent_dist`, `decode` the pictures of a sample of it.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate
    # On a CPU with AMX the gradients of small convolutions in bfloat16 come out as NaN (torch 2.13).
    with torch.autocast(pictures.device.type, torch.bfloat16, enabled=pictures.device.type == "cuda"):
        latents = encode(pictures).latent_dist
        sampled = latents.mean + latents.std * torch.randn(latents.mean.shape, generator=noise).to(pictures.device)
        output = decode(sampled)
    error = output.float() - pictures
    mean, logvar = latents.mean.float(), latents.logvar.float()
    divergence = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
    loss = (error**2).mean() + 0.1 * error.abs().mean() + kl * divergence
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()
    return float(loss.detach())


def sample_window(rng: np.random.Generator, frames: int) -> np.ndarray:
    """So many frames in a row of a random clip of a seen combination, uint8 [frames, H, W, 3]."""
    start = int(rng.integers(world.FRAMES - frames + 1))
    captions = world.captions("seen")
    scene = world.scene(world.parse(captions[rng.integers(len(captions))]), rng)
    return world.render(scene, slice(start, start + frames))


@torch.no_grad()
def scale_latents(vae: OSP12VAE, clips: Iterable[np.ndarray]) -> None:
    """Fold an affine map into the quantization convolutions so that each channel of latents * 0.18215 has mean 0 and
    deviation DEVIATION over `clips`.

    The means are mapped, the log-variances shifted along, and the decoder's entry undoes it, so that what the
    autoencoder reconstructs stays the same.
    """
    means = torch.cat([vae.encode(to_video([clip], vae.device)).latent_dist.mean for clip in clips])
    center, deviation = means.mean((0, 2, 3, 4)), means.std((0, 2, 3, 4))
    factor = DEVIATION / (vae.scaling_factor * deviation)
    (weight, bias), channels = _convolution(vae.quant_conv), len(center)
    weight[:channels] *= factor.view(-1, 1, 1, 1, 1)
    bias[:channels] = (bias[:channels] - center) * factor
    bias[channels:] += 2 * factor.log()
    weight, bias = _convolution(vae.post_quant_conv)
    bias += weight[:, :, 0, 0, 0] @ center
    weight /= factor.view(1, -1, 1, 1, 1)


def _convolution(layer: torch.nn.Module | None) -> tuple[Tensor, Tensor]:
    """Weight and bias of a causal convolution."""
    assert layer is not None
    parameters = dict(layer.named_parameters())
    return parameters["conv.weight"], parameters["conv.bias"]
