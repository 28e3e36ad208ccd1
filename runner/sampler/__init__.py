"""Solvers of the sampling equation. Importing this room does not import torch; asking it for a scheduler does."""

from typing import TYPE_CHECKING, Any

from .methods import SAMPLE_METHODS

if TYPE_CHECKING:
    from .schedulers import make_scheduler

__all__ = ["SAMPLE_METHODS", "make_scheduler"]


def __getattr__(name: str) -> Any:
    if name == "make_scheduler":
        from .schedulers import make_scheduler

        return make_scheduler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
