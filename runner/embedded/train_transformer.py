"""Train the small diffusion transformer together with its text encoder, on latents computed once."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from runner.embedded import world
from runner.embedded.evaluate import attribute_scores, make_pipeline, spread
from runner.embedded.journal import Journal, learning_rate, random_of
from runner.embedded.text import build_encoder, build_tokenizer, tokenize
from runner.embedded.train_vae import to_video
from runner.model.osp12.transformer import OSP12Transformer
from runner.model.osp12.vae import OSP12VAE


@dataclass(frozen=True)
class TransformerPlan:
    """`clips` of every seen caption are encoded once; `check` counts iterations between evaluations by the judge."""

    iterations: int = 5500
    batch: int = 32
    rate: float = 1.5e-3
    clips: int = 24
    dropout: float = 0.1  # of captions, for guidance
    decay: float = 0.999  # of the moving average
    check: int = 500
    check_prompts: int = 24  # of each split
    check_steps: int = 20
    guidance: float = 4.0
    seed: int = 1


class TextToVideo(nn.Module):
    """What is trained jointly: the transformer and its text encoder."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        heads, head_dim, text_width = 4, 24, 64
        self.text_encoder = build_encoder(vocabulary, text_width)
        self.transformer = OSP12Transformer(
            num_attention_heads=heads,
            attention_head_dim=head_dim,
            num_layers=12,
            cross_attention_dim=heads * head_dim,
            caption_channels=text_width,
            sample_size=[world.SIZE // 8, world.SIZE // 8],
            sample_size_t=(world.FRAMES - 1) // 4 + 1,
            interpolation_scale_t=1.0,
            interpolation_scale_h=1.0,
            interpolation_scale_w=1.0,
        )
        nn.init.zeros_(self.transformer.proj_out.weight)
        nn.init.zeros_(self.transformer.proj_out.bias)

    def forward(self, noisy: Tensor, timestep: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Noise [B,4,t,h,w] of noisy latents at integer timesteps [B], under captions [B,L]."""
        text = self.text_encoder(input_ids=ids, attention_mask=mask)[0]
        return self.transformer(noisy, timestep, text[:, None], encoder_attention_mask=mask[:, None]).sample


@torch.no_grad()
def encode_clips(vae: OSP12VAE, plan: TransformerPlan, path: Path) -> dict[str, Tensor]:
    """Scaled mean and deviation [seen captions, clips, 4, t, h, w] of fresh clips' latents; kept at `path`."""
    if path.exists():
        return torch.load(path, weights_only=True)
    rng, means, deviations = np.random.default_rng([plan.seed, 7]), [], []
    for attributes in world.SEEN:
        clips = [world.render(world.scene(attributes, rng)) for _ in range(plan.clips)]
        with torch.autocast(vae.device.type, torch.bfloat16):
            latents = [vae.encode(to_video([clip], vae.device)).latent_dist for clip in clips]
        means.append(torch.cat([each.mean.float().cpu() for each in latents]) * vae.scaling_factor)
        deviations.append(torch.cat([each.std.float().cpu() for each in latents]) * vae.scaling_factor)
    data = {"mean": torch.stack(means), "deviation": torch.stack(deviations)}
    torch.save(data, path)
    return data


def train_transformer(
    folder: Path, vae: OSP12VAE, device: torch.device, plan: TransformerPlan, minutes: float | None = None
) -> TextToVideo | None:
    """Train, or go on where the folder stands. The moving average, or None when `minutes` ended before the plan."""
    journal, tokenizer = Journal(folder, "transformer"), build_tokenizer()
    torch.manual_seed(plan.seed)
    model = TextToVideo(len(tokenizer)).to(device)
    average = copy.deepcopy(model).requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.rate, betas=(0.9, 0.99), weight_decay=0.01)
    first = 0
    if (state := journal.resume()) is not None:
        first = state["iteration"]
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
    if first >= plan.iterations:
        return average

    data = {name: each.to(device) for name, each in encode_clips(vae, plan, folder / "latents.pt").items()}
    ids, mask = (each.to(device) for each in tokenize(tokenizer, [*world.captions("seen"), ""]))
    losses: list[float] = []
    for iteration in range(first, plan.iterations):
        losses.append(_step(model, optimizer, data, ids, mask, plan, iteration))
        done = iteration + 1
        _follow(average, model, min(plan.decay, done / (done + 20)))
        over = minutes is not None and journal.session() > minutes
        check = done % plan.check == 0 or done == plan.iterations
        if check:
            scores = _check(average, vae, tokenizer, plan)
            journal.log(done, loss=float(np.mean(losses[-200:])), **scores)
        if check or over or done % 250 == 0:
            state = {"model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
            journal.save(iteration=done, **state)
        if over and done < plan.iterations:
            return None
    return average


def noise_levels() -> Tensor:
    """Share of signal power, [1000], of the release's linear betas."""
    return torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)


def _step(
    model: TextToVideo,
    optimizer: torch.optim.Optimizer,
    data: dict[str, Tensor],
    ids: Tensor,
    mask: Tensor,
    plan: TransformerPlan,
    iteration: int,
) -> float:
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

    for group in optimizer.param_groups:
        group["lr"] = learning_rate(plan.rate, iteration, plan.iterations, warmup=200)
    # On a CPU the casts of so small a model cost more than bfloat16 saves.
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        predicted = model(noisy, timestep.to(device), ids[shown], mask[shown]).float()
    # What a clip shows is decided where noise drowns it: there the error is small and has to count for more.
    weight = signal.rsqrt().clamp(max=5.0)
    loss = (weight * (predicted - noise[1]) ** 2).mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


@torch.no_grad()
def _follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


def _check(model: TextToVideo, vae: OSP12VAE, tokenizer: Any, plan: TransformerPlan) -> dict[str, float]:
    pipeline, scores = make_pipeline(model.transformer, model.text_encoder, tokenizer, vae), {}
    for split in ("seen", "unseen"):
        captions = spread(split, plan.check_prompts, plan.seed)
        right = attribute_scores(pipeline, captions, plan.check_steps, plan.guidance, plan.seed)
        scores[f"{split}_score"], scores[f"{split}_all_right"] = float(right.mean()), float(right.all(1).mean())
    return scores
