"""The denoising loop of Open-Sora 1.2: classifier-free guidance (arXiv 2207.12598), and frames that are given.

What a pipeline needs besides is above this: text, references, sizes, decoding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .scheduler import START, RFlowScheduler


@dataclass(frozen=True)
class Guidance:
    """The velocity under guidance: u + scale (c - u), c with the text and u with the embedding of no text.

    y: [B, 1, L, D]; mask: [B, L], the prompt's, which the branch without text is given, too, as in the reference;
    null_y: [L, D]; size: fps, height and width, float32 tensors [1]. `joint` runs both branches in one batch, else the
    one without text runs first. A scale of 1 has one branch.
    """

    model: Any
    y: Tensor
    mask: Tensor
    null_y: Tensor
    size: dict[str, Tensor]
    scale: float
    joint: bool = True

    def __call__(self, z: Tensor, timestep: Tensor, x_mask: Tensor | None = None) -> Tensor:
        """Velocity [B, 4, T, h, w] of latents z at a timestep (scalar); x_mask [B, T] of frames that are denoised."""
        if self.scale == 1:
            return self._run(z, timestep, self.y, x_mask)
        nothing = self.null_y[None, None].expand_as(self.y)
        if self.joint:
            both = None if x_mask is None else x_mask.repeat(2, 1)
            with_text, without = self._run(torch.cat([z, z]), timestep, torch.cat([self.y, nothing]), both).chunk(2)
        else:
            without = self._run(z, timestep, nothing, x_mask)
            with_text = self._run(z, timestep, self.y, x_mask)
        return without + self.scale * (with_text - without)

    def _run(self, z: Tensor, timestep: Tensor, y: Tensor, x_mask: Tensor | None) -> Tensor:
        given = {} if x_mask is None else {"x_mask": x_mask}
        output = self.model(
            x=z, timestep=timestep.float().expand(len(z)), y=y, mask=self.mask, **given, **self.size, return_dict=False
        )
        return output[0][:, : z.shape[1]]  # the rest is a variance that rectified flow has no use for


def denoise(
    scheduler: Any,
    velocity: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    z: Tensor,
    frame_mask: Tensor | None = None,
    noise: Callable[[int], Tensor] | None = None,
    on_step: Callable[[int, Tensor, Tensor, Tensor], Tensor] = lambda index, timestep, z, velocity: z,
    part: slice = slice(None),
) -> Tensor:
    """Latents [B, 4, T, h, w], float32, after all timesteps of the scheduler, or those of one loop, `part`.

    frame_mask: [B, T], 0 for frames of `z` that are given, 1 for those that are noise, between for frames that are
    given and edited: they wait until the timestep is below so much of 1000, and are noised then, with noise(step).
    on_step is given each step's index, timestep, latents and velocity, and returns the latents to go on with.
    """
    noised = None if frame_mask is None else frame_mask == 1
    for index, timestep in enumerate(scheduler.timesteps[part]):
        before, active = z, None
        if frame_mask is not None and noised is not None and noise is not None:
            active = frame_mask * START >= timestep
            fresh = scheduler.add_noise(z, noise(index), timestep)
            z = torch.where(_frames(active & ~noised), fresh, z)
            noised = active
        v = velocity(z, timestep, active)
        z = scheduler.step(v, timestep, z, return_dict=False)[0]
        z = z if active is None else torch.where(_frames(active), z, before)
        z = on_step(index, timestep, z, v)
    return z


def _frames(mask: Tensor) -> Tensor:
    """[B, T] -> [B, 1, T, 1, 1]."""
    return mask[:, None, :, None, None]


@torch.no_grad()
def rflow_sample(
    model: Any,
    z: Tensor,
    y: Tensor,
    y_mask: Tensor,
    null_y: Tensor,
    num_frames: int,
    height: float,
    width: float,
    fps: float,
    num_sampling_steps: int,
    cfg_scale: float,
    frame_mask: Tensor | None = None,
    step_noise: Tensor | None = None,
    use_timestep_transform: bool = True,
    use_discrete_timesteps: bool = False,
) -> Tensor:
    """The latents [B, 4, T, h, w] of a video, from noise and text: the released sampling as one function.

    z: noise [B, 4, T, h, w], with references in place of the frames that `frame_mask` [B, T] says are given (see
    `denoise`). y, y_mask: text embeddings [B, L, D] or [B, 1, L, D] and their mask [B, L]; null_y [L, D] stands for no
    text. num_frames, height, width (pixels) and fps are what the model is told. step_noise: [steps, B, 4, T, h, w],
    used where a frame is edited; None: drawn.
    """
    scheduler = RFlowScheduler(use_discrete_timesteps, use_timestep_transform)
    scheduler.set_timesteps(num_sampling_steps, z.device, height=height, width=width, num_frames=num_frames)
    size = {"fps": fps, "height": height, "width": width}
    velocity = Guidance(
        model,
        y[:, None] if y.ndim == 3 else y,
        y_mask,
        null_y.to(y),
        {name: torch.tensor([float(value)], device=z.device) for name, value in size.items()},
        cfg_scale,
    )
    z = z.float()

    def noise(index: int) -> Tensor:
        return torch.randn_like(z) if step_noise is None else step_noise[index].to(z)

    return denoise(scheduler, velocity, z, frame_mask, noise)
