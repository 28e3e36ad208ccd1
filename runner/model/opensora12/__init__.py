"""Open-Sora 1.2. Importing the room imports no torch (the desk asks its rules); asking for a class does."""

from importlib import import_module
from typing import Any

_NAMES = {
    "vae": ("OpenSora12VAE",),
    "transformer": ("OpenSora12Transformer",),
    "loading": ("apply_template", "load", "load_transformer", "skeleton"),
    "masks": ("apply_mask_strategy", "find_nearest_point", "parse_mask_strategy", "strategy_text"),
    "pipeline": ("OpenSora12Pipeline", "OpenSora12PipelineOutput"),
    "prompts": ("append_score", "extract_json", "save_path", "split_merge", "split_prompt", "text_preprocessing"),
    "sampling": ("rflow_sample",),
    "scheduler": ("RFlowScheduler", "timesteps"),
    "sizes": ("dframe_to_frame", "frame_count", "image_size", "latent_sizes"),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)
    if name in ("ModelMixin", "SchedulerMixin"):  # DiffusionPipeline.from_pretrained asks a component's library for its
        return getattr(import_module("diffusers"), name)  # base class
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
