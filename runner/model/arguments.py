"""The arguments of a model's call as files keep them: tensors by name, and an outline of all that is around them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

PLAIN = (bool, int, float, str, type(None))


def named(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """The arguments of a call by name; `names` are those of the module's forward, in order."""
    if len(args) > len(names):
        raise TypeError(f"{type(module).__name__} was called with {len(args)} arguments, and takes {len(names)}")
    return {**dict(zip(names, args, strict=False)), **kwargs}


def flatten(arguments: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by name, those inside of tuples, lists and mappings as name.0, name.key; and the outline: all else, as
    JSON can hold it. None is left out. TypeError, naming it, for a value that no file could give back."""
    tensors: dict[str, Tensor] = {}
    outline: dict[str, Any] = {}
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            tensors[name] = value
        elif value is not None:
            outline[name] = _outline(value, name, tensors)
    return tensors, outline


def restore(tensors: Mapping[str, Tensor], outline: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that `flatten` took apart."""
    within = {place for name in outline for place in tensors if place.startswith(f"{name}.")}
    found: dict[str, Any] = {name: tensor for name, tensor in tensors.items() if name not in within}
    return found | {name: _restored(value, tensors) for name, value in outline.items()}


def moved(value: Any, device: torch.device | str, dtype: torch.dtype | None = None) -> Any:
    """A value, or a container of values, with its tensors on a device; floating-point ones in `dtype`, if given."""
    if isinstance(value, Tensor):
        return value.to(device, dtype if dtype is not None and value.is_floating_point() else value.dtype)
    if isinstance(value, Mapping):
        return {name: moved(inner, device, dtype) for name, inner in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(moved(inner, device, dtype) for inner in value)
    return value


def _outline(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, tuple | list):
        inner = [_outline(entry, f"{name}.{place}", tensors) for place, entry in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": inner}
    if isinstance(value, Mapping):
        return {"mapping": {str(key): _outline(entry, f"{name}.{key}", tensors) for key, entry in value.items()}}
    if isinstance(value, PLAIN):
        return {"value": value}
    raise TypeError(
        f"the transformer is called with {name} of type {type(value).__name__}, which no recording can hold"
    )


def _restored(outline: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    ((kind, content),) = outline.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "mapping":
        return {name: _restored(inner, tensors) for name, inner in content.items()}
    if kind in ("tuple", "list"):
        inner = [_restored(entry, tensors) for entry in content]
        return tuple(inner) if kind == "tuple" else inner
    return content
