"""Any text-to-image or text-to-video pipeline of diffusers. Importing the room imports no torch: the desk asks its
rules."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .loading import apply_template, load, load_transformer, skeleton

__all__ = ["apply_template", "load", "load_transformer", "skeleton"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(".loading", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
