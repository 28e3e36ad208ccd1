"""The models: diffusers pipelines that this project builds, and which of their modules are blocks. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, cast

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


def blocks(pipeline: Any) -> list[str]:
    """Dotted names, under pipeline.transformer, of the blocks in the order in which they run.

    A transformer declares its lists of blocks as `block_lists`; lists in a tuple of their own take turns, the first
    block of each, then the second. For one that nobody here wrote they are its lists of modules whose class diffusers
    declares to be repeated or not to be split, else all its lists of two or more modules of one class that have
    parameters. Raises ValueError when there is neither, and for a list that the transformer does not have.
    """
    transformer = pipeline.transformer
    lists = getattr(transformer, "block_lists", None)
    if lists is None:
        lists = _repeated(transformer)
    groups = [(entry,) if isinstance(entry, str) else tuple(entry) for entry in lists]
    modules = dict(transformer.named_modules())
    if strange := [name for group in groups for name in group if type(modules.get(name)).__name__ != "ModuleList"]:
        raise ValueError(f"{type(transformer).__name__} has no list of modules {', '.join(strange)}")
    names = [f"{name}.{index}" for group in groups for index in range(len(modules[group[0]])) for name in group]
    if not names:
        raise ValueError(f"{type(transformer).__name__} declares no blocks: name its lists of them in model.blocks")
    return names


def _repeated(transformer: Any) -> list[str]:
    """The lists of repeated modules right under a transformer, in the order of its definition."""
    kinds = {
        kind for key in ("_repeated_blocks", "_no_split_modules") for kind in getattr(transformer, key, None) or ()
    }
    lists = {name: child for name, child in transformer.named_children() if type(child).__name__ == "ModuleList"}
    declared = [name for name, entries in lists.items() if any(type(entry).__name__ in kinds for entry in entries)]
    alike = [
        name
        for name, entries in lists.items()
        if len(entries) > 1 and len({type(entry) for entry in entries}) == 1 and any(True for _ in entries.parameters())
    ]
    return declared or alike
