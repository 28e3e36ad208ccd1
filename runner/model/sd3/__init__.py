"""Stable Diffusion 3: diffusers' own pipeline, so the room of all diffusers pipelines, and what its guide adds.
Importing the room imports no torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..diffusers import apply_template, load_transformer, skeleton
    from .loading import load

__all__ = ["apply_template", "load", "load_transformer", "skeleton"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(".loading" if name == "load" else "..diffusers", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
