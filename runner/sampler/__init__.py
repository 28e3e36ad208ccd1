"""Solvers of the sampling equation. Importing this room does not import torch; asking it for a scheduler does."""

from typing import TYPE_CHECKING, Any

from .methods import NOISY, SAMPLE_METHODS, SCHEDULED

if TYPE_CHECKING:
    from .schedulers import make_scheduler
    from .solvers import exact

__all__ = ["NOISY", "SAMPLE_METHODS", "SCHEDULED", "exact", "make_scheduler"]


def __getattr__(name: str) -> Any:
    if name == "make_scheduler":
        from .schedulers import make_scheduler

        return make_scheduler
    if name == "exact":
        from .solvers import exact

        return exact
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
