"""What the exported parts of a quantized linear must be: a table for each scheme, checked part by part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Part:
    """One tensor of a layer.

    shape: sizes by name or number, as in "n 1"; a name stands for one size throughout a layer, that of the first part
    of the table that has it. dtype: what it may be, or the name of another part whose dtype it has. is_float: whether
    the description has it as FLOAT and not by the scheme's tag.
    """

    shape: str
    dtype: tuple[torch.dtype, ...] | str
    optional: bool = False
    is_float: bool = False


def misfits(layer: str, parts: Mapping[str, Tensor], table: Mapping[str, Part]) -> list[str]:
    """What is wrong with the parts of one layer, a sentence each: missing, unknown, of another dtype or shape."""
    missing = [name for name, part in table.items() if name not in parts and not part.optional]
    unknown = [name for name in parts if name not in table]
    if missing or unknown or parts["weight"].dim() != 2:
        words = [f"lacks {', '.join(missing)}"] if missing else []
        words += [f"has unknown {', '.join(unknown)}"] if unknown else []
        return [f"{layer}: {'; '.join(words) or 'weight is not a matrix'}"]
    problems, sizes = [], dict[str, int]()
    for name, part in table.items():
        if name not in parts:
            continue
        tensor, axes = parts[name], part.shape.split()
        dtypes = (parts[part.dtype].dtype,) if isinstance(part.dtype, str) else part.dtype
        if tensor.dim() == len(axes):
            for axis, size in zip(axes, tensor.shape, strict=True):
                sizes.setdefault(axis, int(axis) if axis.isdecimal() else size)
        shape = [sizes.get(axis, axis) for axis in axes]
        if tensor.dtype not in dtypes or list(tensor.shape) != shape:
            want = " or ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
            got = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
            problems.append(f"{layer}.{name}: {got}, must be {want} {shape}")
    return problems


def stored(layer: str, what: str, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """`scale` in the model's dtype; ValueError where that would be zero, infinite, or off by more than 2^-8 of it."""
    stored = scale.to(dtype)
    wrong = ~((stored.float() - scale).abs() <= scale * 2**-8)  # an infinite difference is wrong too
    if wrong.any():
        channel = int(wrong.flatten().nonzero()[0])
        where = f" of output channel {channel}" if scale.numel() > 1 else ""
        raise ValueError(
            f"{layer}: {what} {scale.flatten()[channel]:.3g}{where} does not fit {str(dtype).removeprefix('torch.')} "
            f"(it would be {stored.flatten()[channel]:.3g}; normal numbers are {torch.finfo(dtype).tiny:.2g} to "
            f"{torch.finfo(dtype).max:.3g}): use model.dtype=bf16, or keep this layer in float (quant.exclude)"
        )
    return stored
