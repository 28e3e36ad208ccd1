"""The models: diffusers pipelines that this project builds, and which of their modules are blocks. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any


def load_pipeline(model: Mapping[str, Any], sample_method: str, device: str, transformer: Any = None) -> Any:
    """The float pipeline of a model section (`name` chooses the room; paths absolute) on a device, ready to sample.

    `transformer` takes the place of the checkpoint's own, which is then not read: a quantized one, say. The scheduler
    is one that takes a schedule exactly, where its method can (runner.sampler.SCHEDULED).
    Raises ValueError on a name that has no room here; see the room's `load` for the rest.
    """
    from runner.sampler import exact

    pipeline = _room(model).load(model, sample_method, device, transformer)
    pipeline.scheduler = exact(pipeline.scheduler)
    return pipeline


def load_transformer(model: Mapping[str, Any], device: str) -> Any:
    """The float transformer of a model section, without the rest of its pipeline."""
    return _room(model).load_transformer(model, device)


def skeleton(model: Mapping[str, Any]) -> Any:
    """The transformer of a model section without weights, on the meta device."""
    return _room(model).skeleton(model)


def apply_template(model: Mapping[str, Any], prompt: str) -> str:
    """The prompt as the model's template wraps it (`template`: a name of the room's, or a text with {}), if it has
    templates."""
    return _room(model).apply_template(prompt, model["template"]) if "template" in model else prompt


def _room(model: Mapping[str, Any]) -> Any:
    name = model["name"]
    if not name.isidentifier() or not (Path(__file__).parent / name).is_dir():
        raise ValueError(f"model.name is {name!r}; there is no runner/model/{name}")
    return import_module(f"{__name__}.{name}")


def by_room(module: str, components: Mapping[str, Any]) -> dict[str, Any]:
    """A pipeline's components, (library, class) by name: those of `module`'s package have the package as library."""
    room = module.rpartition(".")[0]
    return {
        name: (room, entry[1]) if isinstance(entry, tuple | list) and str(entry[0]).startswith(f"{room}.") else entry
        for name, entry in components.items()
    }


def blocks(pipeline: Any) -> list[str]:
    """Dotted names, under pipeline.transformer, of the blocks in the order in which they run.

    A transformer declares its lists of blocks as `block_lists`; lists in a tuple of their own take turns, the first
    block of each, then the second. For one that nobody here wrote they are the lists of modules whose class diffusers
    declares to be repeated or not to be split. Raises ValueError when there is neither.
    """
    transformer = pipeline.transformer
    children = dict(transformer.named_children())
    lists = getattr(transformer, "block_lists", None)
    if lists is None:
        kinds = {
            kind for key in ("_repeated_blocks", "_no_split_modules") for kind in getattr(transformer, key, None) or ()
        }
        lists = [
            name
            for name, child in children.items()
            if type(child).__name__ == "ModuleList" and any(type(block).__name__ in kinds for block in child)
        ]
    groups = [(entry,) if isinstance(entry, str) else entry for entry in lists]
    names = [f"{name}.{index}" for group in groups for index in range(len(children[group[0]])) for name in group]
    if not names:
        raise ValueError(f"{type(transformer).__name__} declares no blocks (block_lists names its lists of blocks)")
    return names
