"""diffusers' schedulers that take any timesteps exactly, where its own take none or alter them.

Without timesteps they are the originals, bit for bit. With them, noise levels are interpolated at the given floats as
the Euler schedulers do it, and the transformer gets the floats themselves. A sigma is the noise of x / alpha.
"""

# mypy: disable-error-code="misc,attr-defined,assignment,operator"
# (diffusers annotates its schedulers loosely: config is a dict to it, the step index None)

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler, DDIMSchedulerOutput
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_ancestral_discrete import (
    EulerAncestralDiscreteScheduler,
    EulerAncestralDiscreteSchedulerOutput,
)
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401  DiffusionPipeline.from_pretrained asks here
from torch import Tensor

from .path import WienerPath


def sigmas_at(alphas_cumprod: Tensor, timesteps: np.ndarray) -> np.ndarray:
    """sqrt((1 - a) / a) at fractional timesteps, linear between whole ones (float32)."""
    sigmas = np.array(((1 - alphas_cumprod) / alphas_cumprod) ** 0.5)
    return np.interp(timesteps, np.arange(len(sigmas)), sigmas).astype(np.float32)


def _descending(timesteps: Sequence[float]) -> np.ndarray:
    values = np.array(timesteps, dtype=np.float32)
    if values.ndim != 1 or len(values) < 1 or not (np.diff(values) < 0).all():
        raise ValueError(f"timesteps must descend: got {list(timesteps)}")
    return values


class _Exact:
    """What all but the last have in common: `timesteps=` beside `num_inference_steps=`."""

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | None = None,
        **options: Any,
    ) -> None:
        """As the original; or exactly these timesteps, descending. ValueError unless one of the two is given."""
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError("pass either num_inference_steps or timesteps")
        exact = None if timesteps is None else _descending(timesteps)
        steps = num_inference_steps if exact is None else len(exact)
        super().set_timesteps(steps, device=device, **options)
        if exact is not None:
            self._take(exact, device)

    def _take(self, timesteps: np.ndarray, device: str | torch.device | None) -> None:
        if self.config.get("use_flow_sigmas"):  # a flow's noise is its share of the schedule, and never all
            sigmas = np.minimum(timesteps / self.config.num_train_timesteps, 1 - 1e-6).astype(np.float32)
        else:
            sigmas = sigmas_at(self.alphas_cumprod, timesteps)
        sigmas = np.append(sigmas, np.float32(0))
        self.sigmas = torch.from_numpy(sigmas)  # stays on the host
        self.timesteps = torch.from_numpy(timesteps).to(device=device)


class EulerDiscrete(_Exact, EulerDiscreteScheduler):
    """Euler's method (Karras et al., arXiv 2206.00364, algorithm 2 without churn)."""


class EulerAncestralDiscrete(_Exact, EulerAncestralDiscreteScheduler):
    """Euler's method with ancestral noise (k-diffusion's sample_euler_ancestral), drawn or along a path."""

    paths: list[WienerPath] | None = None

    def follow_paths(self, seeds: Sequence[int] | None, steps: int) -> None:
        """Take the noise of row i of a batch from the path of seeds[i], with the nodes of a run of `steps` steps; with
        None draw it, as the original does."""
        if seeds is None:
            self.paths = None
            return
        super().set_timesteps(steps)
        nodes = [float(sigma) for sigma in self.sigmas[:-1]]
        self.paths = [WienerPath(seed, nodes) for seed in seeds]

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, generator: Any = None, return_dict: bool = True
    ) -> Any:
        """As the original; along paths, x0 + (s_j/s_i)^2 (x - x0) + s_j^2 (W(1/s_j^2) - W(1/s_i^2))."""
        if self.paths is None:
            return super().step(model_output, timestep, sample, generator, return_dict)
        if self.step_index is None:
            self._init_step_index(timestep)
        sigma, to = (float(self.sigmas[self.step_index + n]) for n in (0, 1))
        x = sample.to(torch.promote_types(sample.dtype, torch.float32))
        if self.config.prediction_type == "epsilon":
            x0 = x - sigma * model_output
        elif self.config.prediction_type == "v_prediction":
            x0 = (x - sigma * (sigma**2 + 1) ** 0.5 * model_output) / (sigma**2 + 1)
        else:
            raise ValueError(f"prediction_type is {self.config.prediction_type!r}; expected epsilon or v_prediction")
        moved = x0 + (to / sigma) ** 2 * (x - x0)
        if to > 0:
            moved = moved + to**2 * self._increment(sigma, to, model_output).to(moved.device)
        self._step_index += 1
        moved = moved.to(model_output.dtype)
        output = EulerAncestralDiscreteSchedulerOutput(prev_sample=moved, pred_original_sample=x0)
        return output if return_dict else (moved, x0)

    def _increment(self, sigma: float, to: float, like: Tensor) -> Tensor:
        """W(1/to^2) - W(1/sigma^2) for each row of the batch."""
        assert self.paths is not None
        if len(self.paths) != len(like):
            raise ValueError(f"{len(self.paths)} noise paths for a batch of {len(like)}")
        shape = (1, *like.shape[1:])
        return torch.cat(
            [
                path.value(to**-2.0, shape, like.dtype) - path.value(sigma**-2.0, shape, like.dtype)
                for path in self.paths
            ]
        )


class DDIM(_Exact, DDIMScheduler):
    """DDIM (arXiv 2010.02502, equation 12) at eta 0."""

    sigmas: Tensor | None = None  # of the exact timesteps; None: the original's whole ones

    def set_timesteps(self, *args: Any, **options: Any) -> None:
        self.sigmas, self._index = None, 0
        super().set_timesteps(*args, **options)

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: Any = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """As the original; at exact timesteps alpha' x0 + sqrt(1 - alpha'^2) noise, and ValueError unless eta is 0."""
        if self.sigmas is None:
            return super().step(
                model_output, timestep, sample, eta, use_clipped_model_output, generator, variance_noise, return_dict
            )
        if eta:
            raise ValueError(f"DDIM at given timesteps is deterministic: eta must be 0, got {eta}")
        sigma, to = (float(self.sigmas[self._index + n]) for n in (0, 1))
        if self._index + 1 == len(self.timesteps):
            final = float(self.final_alpha_cumprod)
            to = ((1 - final) / final) ** 0.5
        self._index += 1
        alpha, beta = (1 + sigma**2) ** -0.5, sigma * (1 + sigma**2) ** -0.5
        kind = self.config.prediction_type
        if kind == "epsilon":
            x0, noise = (sample - beta * model_output) / alpha, model_output
        elif kind == "v_prediction":
            x0, noise = alpha * sample - beta * model_output, alpha * model_output + beta * sample
        else:
            x0, noise = model_output, (sample - alpha * model_output) / beta
        if self.config.clip_sample:
            x0 = x0.clamp(-self.config.clip_sample_range, self.config.clip_sample_range)
        moved = (x0 + to * noise) * (1 + to**2) ** -0.5
        return DDIMSchedulerOutput(prev_sample=moved, pred_original_sample=x0) if return_dict else (moved, x0)


class DPMSolverMultistep(_Exact, DPMSolverMultistepScheduler):
    """DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2)."""


class UniPCMultistep(_Exact, UniPCMultistepScheduler):
    """UniPC (arXiv 2302.04867)."""


class FlowMatchEulerDiscrete(FlowMatchEulerDiscreteScheduler):
    """Euler's method for flow matching (arXiv 2403.03206): a sigma is the share of noise, timestep / 1000."""

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: list[float] | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """As the original; or exactly these timesteps, descending, which nothing shifts. ValueError for a scheduler
        that counts the share of data instead (invert_sigmas)."""
        if timesteps is None:
            super().set_timesteps(num_inference_steps, device=device, sigmas=sigmas, mu=mu)
            return
        if self.config.invert_sigmas:
            raise ValueError("timesteps are not taken with invert_sigmas, under which a sigma is the share of data")
        exact = torch.from_numpy(_descending(timesteps))
        self.num_inference_steps = len(exact)
        self.timesteps = exact.to(device=device)
        shares = exact / self.config.num_train_timesteps
        self.sigmas = torch.cat([shares, torch.zeros(1)]).to(device=device)
        self._step_index = self._begin_index = None


EXACT = {
    original: kind
    for kind in (
        EulerAncestralDiscrete,
        EulerDiscrete,
        DDIM,
        DPMSolverMultistep,
        UniPCMultistep,
        FlowMatchEulerDiscrete,
    )
    for original in (kind.__bases__[-1], kind)
}


def exact(scheduler: Any) -> Any:
    """The exact form of one of diffusers' six (with its configuration); any other scheduler as it is."""
    kind = EXACT.get(type(scheduler))
    return scheduler if kind is None else kind.from_config(scheduler.config)
