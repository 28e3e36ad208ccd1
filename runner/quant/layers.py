"""Which linears are quantized, and what keeps each of the others in float."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear


@dataclass(frozen=True)
class Selection:
    """Every linear of a model is in exactly one of the two, in the model's order.

    quantized: full dotted names; kept_float: name -> the exclude pattern that kept it float, or another reason.
    """

    quantized: tuple[str, ...]
    kept_float: dict[str, str]


def select(model: nn.Module, include: Iterable[str] = ("*",), exclude: Iterable[str] = ()) -> Selection:
    """Pick the nn.Linear modules that match any `include` and no `exclude` pattern.

    Patterns are those of fnmatch on full dotted names: case-sensitive, and '*' crosses dots. A pattern that matches no
    linear raises ValueError with the nearest names.
    """
    include, exclude = list(include), list(exclude)
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for pattern in [*include, *exclude]:
        if not any(fnmatchcase(name, pattern) for name in linears):
            raise ValueError(
                f"pattern {pattern!r} matches no linear of {type(model).__name__}; {_nearest(pattern, linears)}"
            )
    quantized, kept_float = [], {}
    for name, module in linears.items():
        if reason := _keep_float(name, module, include, exclude):
            kept_float[name] = reason
        else:
            quantized.append(name)
    return Selection(tuple(quantized), kept_float)


def _keep_float(name: str, module: nn.Linear, include: list[str], exclude: list[str]) -> str | None:
    for pattern in exclude:
        if fnmatchcase(name, pattern):
            return pattern
    if not any(fnmatchcase(name, pattern) for pattern in include):
        return f"not in {include}"
    # Swapping these would change what the model computes, or nothing at all.
    if isinstance(module, NonDynamicallyQuantizableLinear):
        return "its parent uses the weight without calling the linear"
    if type(module).forward is not nn.Linear.forward:
        return f"{type(module).__name__} has a forward of its own"
    return None


def _nearest(pattern: str, names: Iterable[str]) -> str:
    names = list(names)
    stem = pattern.strip("*")
    # Names that share a dotted part in spirit ("attn" for "atn"), then whole names.
    parts = {part: name for name in reversed(names) for part in name.split(".")}
    near = [parts[p] for p in difflib.get_close_matches(stem.split(".")[-1], parts, n=3)]
    near += difflib.get_close_matches(stem, names, n=3, cutoff=0.3)
    near = list(dict.fromkeys(near))[:3] or names[:3]
    return f"nearest: {', '.join(near)}" if near else "it has no linears"
