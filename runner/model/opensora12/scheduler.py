"""Rectified flow (arXiv 2209.03003) as Open-Sora 1.2 samples it: Euler steps of a velocity that is data minus noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from torch import Tensor

from .sizes import MICRO_FRAMES, MICRO_LATENTS, TIME_FACTOR

BASE_RESOLUTION = 512 * 512  # pixels of the clips for which timesteps are spread evenly
START = 1000.0  # timestep of pure noise


def timesteps(
    steps: int,
    height: float,
    width: float,
    num_frames: int,
    dtype: torch.dtype | str = torch.float32,
    discrete: bool = False,
    transform: bool = True,
) -> Tensor:
    """Timesteps [steps], float32, from 1000 down to the last before 0; `discrete` ones are whole before the transform.

    t -> r t / (1 + (r - 1) t) with r = sqrt(pixels / 512^2) * sqrt(latent frames) (as in arXiv 2403.03206, 5.3.2). The
    reference counts 5 latent frames for each 17 frames and none for a rest, so that a clip of 2 to 16 frames would have
    no noise at all: its latent frames are counted here. The reference computes r in the model's dtype; in float16 that
    overflows from 240p on. Sampling uses float32, `dtype` is for comparisons with the reference.
    """
    t = torch.tensor([(1 - index / steps) * START for index in range(steps)])
    t = t.round() if discrete else t
    if transform:
        kind = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        rows, columns, frames = (torch.tensor(float(side), dtype=kind) for side in (height, width, num_frames))
        short = torch.full_like(frames, -(-num_frames // TIME_FACTOR))
        latent_frames = short if num_frames < MICRO_FRAMES else frames // MICRO_FRAMES * MICRO_LATENTS
        ratio = (rows * columns / BASE_RESOLUTION).sqrt() * latent_frames.sqrt()
        share, ratio = t / START, ratio.float()
        t = ratio * share / (1 + (ratio - 1) * share) * START
    # Rounding may take the first beyond 1000, where every frame would count as given, and the step would do nothing.
    return t.clamp(max=START)


class RFlowScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]  # the two disagree about config_name
    """The solver: x + v dt, the last step to 0. Its timesteps depend on the size of the video, once that is known."""

    order = 1

    @register_to_config
    def __init__(self, use_discrete_timesteps: bool = False, use_timestep_transform: bool = True) -> None:
        self.init_noise_sigma = 1.0
        self.loops = 1
        self.num_inference_steps: int | None = None
        self.timesteps = torch.zeros(0)
        self._position: int | None = None

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: Sequence[float] | None = None,
        height: float | None = None,
        width: float | None = None,
        num_frames: int | None = None,
        loops: int | None = None,
    ) -> None:
        """Set `timesteps`: so many steps for a video of this size, or a descending list in (0, 1000] as it stands.

        Without a size they are spread evenly. All of it comes `loops` times (what `loops` was set to, 1 at first), each
        ending at 0. Raises ValueError on a list that does not descend within the range.
        """
        if timesteps is not None:
            given = torch.tensor([float(t) for t in timesteps])
            if not len(given) or given[0] > START or given[-1] <= 0 or (given.diff() >= 0).any():
                raise ValueError(f"timesteps must descend within 1000 to 0 (exclusive), not {given.tolist()}")
        elif num_inference_steps is None:
            raise ValueError("pass num_inference_steps or timesteps")
        else:
            sized = height is not None and width is not None and num_frames is not None
            given = _timesteps(
                num_inference_steps,
                height or 0,
                width or 0,
                num_frames or 1,
                discrete=self.config["use_discrete_timesteps"],
                transform=self.config["use_timestep_transform"] and sized,
            )
        self.num_inference_steps = len(given)
        self.timesteps = given.repeat(self.loops if loops is None else loops).to(device)
        self._position = 0

    def scale_model_input(self, sample: Tensor, timestep: Tensor | float | None = None) -> Tensor:
        """The sample as it is."""
        return sample

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """(1 - t / 1000) x + t / 1000 noise, t a scalar or [B]."""
        share = (timesteps.float() / START).reshape(-1, *[1] * (original_samples.ndim - 1))
        return (1 - share) * original_samples + share * noise

    def step(
        self, model_output: Tensor, timestep: Tensor | float, sample: Tensor, return_dict: bool = True
    ) -> SchedulerOutput | tuple[Tensor]:
        """The sample at the next timestep, in float32. Steps are taken in order; `timestep` is not looked at."""
        if self._position is None or self._position >= len(self.timesteps):
            raise ValueError("set_timesteps comes first, and there are no more steps than it says")
        now, *later = self.timesteps[self._position : self._position + 2]
        # A later timestep that is not lower begins the next loop.
        dt = (now - later[0].where(later[0] < now, 0.0) if later else now) / START
        self._position += 1
        previous = sample.float() + model_output.float() * dt
        return SchedulerOutput(prev_sample=previous) if return_dict else (previous,)


_timesteps = timesteps  # where an argument has the name of the function
