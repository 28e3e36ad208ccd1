"""Train the small causal autoencoder on rendered clips, then scale its latents to the pipeline's constant."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from runner.embedded import world
from runner.embedded.journal import Journal, learning_rate, random_of
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

    def batch(self, iteration: int) -> tuple[int, int]:
        """Frames and clips of an iteration."""
        for frames, clips, iterations in self.phases:
            if iteration < iterations:
                return frames, clips
            iteration -= iterations
        raise IndexError("past the plan's last iteration")


REFINEMENT = VAEPlan(phases=((world.FRAMES, 1, 1600),), rate=1e-3, kl=0.0, seed=2)  # of the decoder alone


def build_vae() -> OSP12VAE:
    """An untrained autoencoder of the released block types, 32 channels on every level, residual branches at 0."""
    vae = OSP12VAE(hidden_size=32, hidden_size_mult=(1, 1, 1, 1), num_res_blocks=1, resolution=world.SIZE)
    for name, parameter in vae.named_parameters():
        if ".conv2." in name or ".attn_1.proj_out." in name:
            torch.nn.init.zeros_(parameter)
    _convolution(vae.quant_conv)[1].data[4:] -= 4.0  # little noise at first, or colors drown in it
    return vae


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
    with torch.autocast(device.type, torch.bfloat16):  # weights may be of any dtype
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
    parameters = [each for each in vae.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=plan.rate, betas=(0.9, 0.99), weight_decay=1e-3)
    first, total = 0, plan.iterations
    if (state := journal.resume()) is not None:
        first = state["iteration"]
        vae.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    held_out = [clip for clip, _ in held_out_clips(8)]
    for iteration in range(first, total):
        loss = _step(vae, optimizer, plan, iteration)
        done = iteration + 1
        if done == total and vae.encoder.conv_in.weight.requires_grad:
            scale_latents(vae, (world.sample(np.random.default_rng(i))[0] for i in range(64)))
        check, over = done % plan.check == 0 or done == total, minutes is not None and journal.session() > minutes
        if check:
            psnr = [decibels(*pair) for pair in zip(reconstruct(vae, held_out), held_out, strict=True)]
            journal.log(done, loss=loss, psnr_db=float(np.median(psnr)))
        if check or over:
            journal.save(iteration=done, model=vae.state_dict(), optimizer=optimizer.state_dict(), done=done == total)
        if over and done < total:
            return False
    return True


def _step(vae: OSP12VAE, optimizer: torch.optim.Optimizer, plan: VAEPlan, iteration: int) -> float:
    rng, noise = random_of(plan.seed, iteration)
    frames, clips = plan.batch(iteration)
    video = to_video([_window(rng, frames) for _ in range(clips)], vae.device)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(plan.rate, iteration, plan.iterations)
    with torch.autocast(video.device.type, torch.bfloat16):
        latents = vae.encode(video).latent_dist
        sampled = latents.mean + latents.std * torch.randn(latents.mean.shape, generator=noise).to(video.device)
        output = vae.decode(sampled)
    error = output.float() - video
    mean, logvar = latents.mean.float(), latents.logvar.float()
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
    loss = (error**2).mean() + 0.1 * error.abs().mean() + plan.kl * kl
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()
    return float(loss.detach())


def _window(rng: np.random.Generator, frames: int) -> np.ndarray:
    start = int(rng.integers(world.FRAMES - frames + 1))
    captions = world.captions("seen")
    scene = world.scene(world.parse(captions[rng.integers(len(captions))]), rng)
    return world.render(scene, slice(start, start + frames))


@torch.no_grad()
def scale_latents(vae: OSP12VAE, clips: Iterable[np.ndarray]) -> None:
    """Fold an affine map into the quantization convolutions so that each channel of latents * 0.18215 has mean 0 and
    variance 1 over `clips`.

    The means are mapped, the log-variances shifted along, and the decoder's entry undoes it, so that what the
    autoencoder reconstructs stays the same.
    """
    means = torch.cat([vae.encode(to_video([clip], vae.device)).latent_dist.mean for clip in clips])
    center, deviation = means.mean((0, 2, 3, 4)), means.std((0, 2, 3, 4))
    factor = 1 / (vae.scaling_factor * deviation)
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
