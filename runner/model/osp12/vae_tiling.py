"""Tiles of a video that is too large to encode or decode at once, as Open-Sora-Plan v1.2 cuts and blends them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def exceeds(x: Tensor, frames: int, size: int) -> bool:
    """Whether [B, C, T, H, W] is larger than one tile."""
    return x.shape[2] > frames or max(x.shape[3:]) > size


def tiled(
    run: Callable[[Tensor], Tensor], x: Tensor, *, frames: int, size: int, out_size: int, overlap: float
) -> Tensor:
    """`run` over [B, C, T, H, W] in chunks of `frames` that share one frame, each a mosaic of tiles.

    The chunks know nothing of each other; the frame that two of them share is taken from the earlier one.
    """
    chunks = []
    for start in range(0, max(x.shape[2] - 1, 1), frames - 1):
        chunk = mosaic(run, x[:, :, start : start + frames], size, out_size, overlap)
        chunks.append(chunk[:, :, 1:] if start else chunk)
    return torch.cat(chunks, dim=2)


def stride_and_keep(size: int, out_size: int, overlap: float) -> tuple[int, int]:
    """How far tiles of `size` are apart, and how much of what each becomes (`out_size`) is kept.

    Raises ValueError if these two differ in proportion, because the kept parts would then not be where they belong.
    """
    stride, keep = int(size * (1 - overlap)), out_size - int(out_size * overlap)
    if not 0 <= overlap < 1 or stride < 1 or stride * out_size != keep * size:
        raise ValueError(f"tile_overlap_factor {overlap} does not divide tiles of {size} (-> {out_size})")
    return stride, keep


def mosaic(run: Callable[[Tensor], Tensor], x: Tensor, size: int, out_size: int, overlap: float) -> Tensor:
    """`run` over tiles of `size` x `size`, each faded into what is already there above it, then to its left."""
    stride, keep = stride_and_keep(size, out_size, overlap)
    blend = out_size - keep
    strips: list[Tensor] = []
    above: list[Tensor] = []
    for top in range(0, x.shape[3], stride):
        row: list[Tensor] = []
        for left in range(0, x.shape[4], stride):
            tile = run(x[..., top : top + size, left : left + size])
            if above:
                fade(above[len(row)], tile, blend, dim=3)
            if row:
                fade(row[-1], tile, blend, dim=4)
            row.append(tile)
        strips.append(torch.cat([tile[..., :keep, :keep] for tile in row], dim=4))
        above = row
    return torch.cat(strips, dim=3)


def fade(before: Tensor, after: Tensor, extent: int, dim: int) -> None:
    """Cross-fade linearly, in place, from the end of `before` into the start of `after` along `dim`."""
    extent = min(before.shape[dim], after.shape[dim], extent)
    dtype = torch.promote_types(after.dtype, torch.float32)  # the weights of a half-precision fade are not rounded
    shape = [extent if axis == dim else 1 for axis in range(after.ndim)]
    weight = (torch.arange(extent, dtype=dtype, device=after.device) / max(extent, 1)).view(shape)
    end, start = before.narrow(dim, before.shape[dim] - extent, extent), after.narrow(dim, 0, extent)
    start.copy_(end * (1 - weight) + start * weight)
