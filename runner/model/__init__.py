"""The models: diffusers pipelines that this project builds, and the layout of their transformers. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from .layout import Layout
from .rules import Room, Rules


def load_pipeline(model: Mapping[str, Any], sample_method: str, device: str, transformer: Any = None) -> Any:
    """The float pipeline of a model section (`name` chooses the room; paths absolute) on a device, ready to sample.

    `transformer` takes the place of the checkpoint's own, which is then not read: a quantized one, say. The scheduler
    is one that takes a schedule exactly, where its method can (runner.sampler.SCHEDULED).
    Raises ValueError on a name that has no room here; see the room's `load` for the rest.
    """
    from runner.sampler import exact

    pipeline = _room(model).load(model, sample_method, device, transformer)
    _declare(model, pipeline.transformer)
    pipeline.scheduler = exact(pipeline.scheduler)
    return pipeline


def load_transformer(model: Mapping[str, Any], device: str) -> Any:
    """The float transformer of a model section, without the rest of its pipeline."""
    return _declare(model, _room(model).load_transformer(model, device))


def skeleton(model: Mapping[str, Any]) -> Any:
    """The transformer of a model section without weights, on the meta device."""
    return _declare(model, _room(model).skeleton(model))


def apply_template(model: Mapping[str, Any], prompt: str) -> str:
    """The prompt as the model's template wraps it (`template`: a name of the room's, or a text with {}), if it has
    templates."""
    return _room(model).apply_template(prompt, model["template"]) if "template" in model else prompt


def rules_of(model: Mapping[str, Any]) -> Rules:
    """The rules of a model section's architecture: a module without torch."""
    return cast(Rules, import_module(f"{__name__}.{model['name']}.rules"))


def _declare(model: Mapping[str, Any], transformer: Any) -> Any:
    """Have the transformer declare the lists of blocks that the model section names, if it names any."""
    if (lists := model.get("blocks")) is not None:
        transformer.block_lists = tuple(lists)
    return transformer


def _room(model: Mapping[str, Any]) -> Room:
    name = model["name"]
    if not name.isidentifier() or not (Path(__file__).parent / name).is_dir():
        raise ValueError(f"model.name is {name!r}; there is no runner/model/{name}")
    return cast(Room, import_module(f"{__name__}.{name}"))


def by_room(module: str, components: Mapping[str, Any]) -> dict[str, Any]:
    """A pipeline's components, (library, class) by name: those of `module`'s package have the package as library."""
    room = module.rpartition(".")[0]
    return {
        name: (room, entry[1]) if isinstance(entry, tuple | list) and str(entry[0]).startswith(f"{room}.") else entry
        for name, entry in components.items()
    }


def parts(pipeline: Any) -> dict[str, Any]:
    """The modules of a pipeline by name: text encoders, transformer, autoencoder; no tokenizer, no solver."""
    from torch import nn

    return {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}


def layout_of(transformer: Any) -> Layout:
    """What a transformer says of itself: by the room that wrote it, else by the room of all of diffusers.

    Raises ValueError where it has no blocks, and for a list of them that it does not have.
    """
    ours = [kind.__module__ for kind in type(transformer).__mro__ if kind.__module__.startswith(f"{__name__}.")]
    room = ours[0].removeprefix(f"{__name__}.").partition(".")[0] if ours else "diffusers"
    return cast(Layout, import_module(f"{__name__}.{room}.layout").layout(transformer))


def blocks(pipeline: Any) -> list[str]:
    """Dotted names, under pipeline.transformer, of the blocks in the order in which they run, see layout_of."""
    return [block.module for block in layout_of(pipeline.transformer).blocks]
