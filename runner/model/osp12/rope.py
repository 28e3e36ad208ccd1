"""Rotary position embedding over time, height and width.

RoFormer (Su et al., arXiv 2104.09864) with a third of each head's channels per axis, in the half-split form: of the d
channels of an axis, i turns with i + d/2. Positions are divided by their axis' interpolation scale (arXiv 2306.15595).
"""

from typing import NamedTuple

import torch

FREQUENCY_BASE = 10000.0


class Rotary(NamedTuple):
    """What `rotate` multiplies with: `cos` and `sin` [tokens, head_dim]; `sin` carries the sign of the turn."""

    cos: torch.Tensor
    sin: torch.Tensor


def axis_angles(length: int, channels: int, scale: float, dtype: torch.dtype) -> torch.Tensor:
    """Angles [length, channels / 2] in radians of one axis, computed in float32.

    They are rounded to the token dtype before anyone takes their cosine: the released weights were trained like that,
    and in bfloat16 it moves the table by up to 0.06.
    """
    frequency = 1.0 / FREQUENCY_BASE ** (torch.arange(0, channels, 2, dtype=torch.float32) / channels)
    position = torch.arange(length, dtype=torch.float32) / scale
    return torch.outer(position, frequency).to(dtype)


def rotary_table(
    grid: tuple[int, int, int],
    head_dim: int,
    scales: tuple[float, float, float],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Rotary:
    """The table of a token grid (frames, rows, columns), in that order, each axis with its own interpolation scale.

    Computed on the host, so that it is the same on every device; outside of inference mode, so that a table made while
    sampling serves a training step too. Raises ValueError when the head's channels cannot be split over three axes.
    """
    if head_dim % 6:
        raise ValueError(f"head_dim is {head_dim}; three rotary axes of channel pairs need a multiple of 6")
    with torch.inference_mode(False), torch.no_grad():
        cos, sin = [], []
        for axis, (length, scale) in enumerate(zip(grid, scales, strict=True)):
            angle = axis_angles(length, head_dim // 3, scale, dtype)
            shape = [1, 1, 1, head_dim // 3]
            shape[axis] = length
            cos.append(torch.cat([angle.cos(), angle.cos()], dim=-1).view(shape).expand(*grid, -1))
            sin.append(torch.cat([-angle.sin(), angle.sin()], dim=-1).view(shape).expand(*grid, -1))
        return Rotary(torch.cat(cos, dim=-1).flatten(0, 2).to(device), torch.cat(sin, dim=-1).flatten(0, 2).to(device))


def rotate(tokens: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """Turn queries or keys [..., tokens, head_dim] by the angles of their positions."""
    t1, t2, h1, h2, w1, w2 = tokens.chunk(6, dim=-1)
    swapped = torch.cat([t2, t1, h2, h1, w2, w1], dim=-1)
    return tokens * rotary.cos + swapped * rotary.sin
