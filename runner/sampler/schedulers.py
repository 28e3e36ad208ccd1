"""The ten released sample methods as diffusers schedulers."""

import diffusers
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from .methods import SAMPLE_METHODS

# Open-Sora-Plan v1.2 takes every default (epsilon prediction, linear betas 1e-4 to 0.02; the betas of Heun and KDPM2
# are not what it was trained with, and stay so) but one: video latents are not bounded by 1.
UNCLIPPED = ("DDIM", "DDPM")


def make_scheduler(sample_method: str) -> SchedulerMixin:
    """A fresh scheduler by its released name. Raises ValueError on a name that is not in SAMPLE_METHODS."""
    if sample_method not in SAMPLE_METHODS:
        raise ValueError(f"sample_method is {sample_method!r}; it must be one of {', '.join(SAMPLE_METHODS)}")
    scheduler = getattr(diffusers, f"{sample_method}Scheduler")
    return scheduler(clip_sample=False) if sample_method in UNCLIPPED else scheduler()
