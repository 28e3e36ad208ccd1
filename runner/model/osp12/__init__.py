"""Open-Sora-Plan v1.2. Importing the room imports no torch (the desk asks its rules); asking for a class does."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .loading import load, load_transformer, skeleton
    from .pipeline import OSP12Pipeline, OSP12PipelineOutput
    from .templates import apply_template
    from .transformer import OSP12Transformer
    from .vae import OSP12VAE

__all__ = [
    "OSP12Pipeline",
    "OSP12PipelineOutput",
    "OSP12Transformer",
    "OSP12VAE",
    "apply_template",
    "load",
    "load_transformer",
    "skeleton",
]

_MODULES = {
    "OSP12Pipeline": "pipeline",
    "OSP12PipelineOutput": "pipeline",
    "OSP12Transformer": "transformer",
    "OSP12VAE": "vae",
    "apply_template": "templates",
    "load": "loading",
    "load_transformer": "loading",
    "skeleton": "loading",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)
    if name == "ModelMixin":  # DiffusionPipeline.from_pretrained asks the library of a component for its base class
        return import_module("diffusers").ModelMixin
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
