"""Blocks of the causal video autoencoder of Open-Sora-Plan v1.2, under the names that its config.json uses.

A video is [B, C, T, H, W]. Blocks with `per_frame` see single frames folded into the batch, [B*T, C, H, W]: they
neither mix nor normalize over time. Convolutions over time are causal. The group norms of the other blocks average over
the whole clip, as in the released model, so that a result depends on how long the clip (or the tile) is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import Attending

CHUNK = 4  # frames that a convolution takes at a time where no gradient is wanted


def group_norm(channels: int) -> nn.GroupNorm:
    """32 groups, eps 1e-6. Raises ValueError if the channels do not divide."""
    if channels % 32:
        raise ValueError(f"{channels} channels do not fall into 32 norm groups")
    return nn.GroupNorm(32, channels, eps=1e-6)


def activated(norm: nn.Module, x: Tensor) -> Tensor:
    """SiLU of norm(x). Without autograd the norm's output is overwritten: it is a full-resolution tensor."""
    x = norm(x)
    return F.silu(x, inplace=not x.requires_grad)


class CausalConv3d(nn.Module):
    """Convolution [B, C, T, H, W] whose window ends at its own frame: the first frame is repeated before the start.

    Height and width are padded with zeros on both sides, or only at the end where `stride` is 2.
    """

    per_frame = False

    def __init__(self, channels: int, out_channels: int, kernel: int | tuple[int, int, int] = 3, stride: int = 1):
        super().__init__()
        depth, height, width = (kernel,) * 3 if isinstance(kernel, int) else kernel
        self.lead = depth - 1  # frames before the first
        self.end = (0, width // 2, 0, height // 2) if stride > 1 else None
        self.conv = nn.Conv3d(
            channels,
            out_channels,
            (depth, height, width),
            stride,
            (0, 0, 0) if self.end else (0, height // 2, width // 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        stride = self.conv.stride[0]
        frames = (x.shape[2] - 1) // stride + 1
        if torch.is_grad_enabled() or frames <= CHUNK:
            return self.conv(self._window(x, 0, x.shape[2] + self.lead))
        # A padded copy of all frames (and a CPU's reordered ones) would be among the largest tensors of a decode.
        out: Tensor | None = None
        for start in range(0, frames, CHUNK):
            stop = min(start + CHUNK, frames)
            chunk = self.conv(self._window(x, start * stride, (stop - 1) * stride + 1 + self.lead))
            out = _empty(chunk, frames) if out is None else out
            out[:, :, start:stop] = chunk
        assert out is not None
        return out

    def _window(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Frames [start, stop) of the padded clip."""
        before = max(self.lead - start, 0)
        window = x[:, :, start + before - self.lead : stop - self.lead]
        if before:
            window = torch.cat([x[:, :, :1]] * before + [window], dim=2)
        return F.pad(window, self.end) if self.end else window


def _empty(chunk: Tensor, frames: int) -> Tensor:
    """Room for `frames` frames laid out like those of `chunk`."""
    last = chunk.is_contiguous(memory_format=torch.channels_last_3d)
    shape = (*chunk.shape[:2], frames, *chunk.shape[3:])
    layout = torch.channels_last_3d if last else torch.contiguous_format
    return torch.empty(shape, dtype=chunk.dtype, device=chunk.device, memory_format=layout)


class Conv2d(nn.Conv2d):
    """Convolution of single frames, [B*T, C, H, W]."""

    per_frame = True

    def __init__(self, channels: int, out_channels: int, kernel: int = 3):
        super().__init__(channels, out_channels, kernel, padding=kernel // 2)


class ResnetBlock2D(nn.Module):
    """Residual block of two 3x3 convolutions on single frames, [B*T, C, H, W]."""

    per_frame = True
    conv: Callable[..., nn.Module] = Conv2d

    def __init__(self, channels: int, out_channels: int, dropout: float = 0.0):
        super().__init__()
        self.norm1 = group_norm(channels)
        self.conv1 = self.conv(channels, out_channels, 3)
        self.norm2 = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = self.conv(out_channels, out_channels, 3)
        if channels != out_channels:
            self.nin_shortcut = self.conv(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        # One expression, so that nothing of the first half is alive in the second.
        h = self.conv2(self.dropout(activated(self.norm2, self.conv1(activated(self.norm1, x)))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class ResnetBlock3D(ResnetBlock2D):
    """The same with causal 3x3x3 convolutions on video, [B, C, T, H, W]; its norms average over time too."""

    per_frame = False
    conv = CausalConv3d


class AttnBlock3DFix(Attending):
    """Residual single-head attention among the positions of each frame, [B, C, T, H, W]."""

    per_frame = False

    def __init__(self, channels: int):
        super().__init__()
        self.norm = group_norm(channels)
        self.q, self.k, self.v, self.proj_out = (CausalConv3d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        b, c, t, h, w = x.shape
        y = self.norm(x)
        q, k, v = (
            project(y).permute(0, 2, 3, 4, 1).reshape(b * t, 1, h * w, c) for project in (self.q, self.k, self.v)
        )
        y = self.attend(q, k, v)
        return x + self.proj_out(y.reshape(b, t, h, w, c).permute(0, 4, 1, 2, 3))


class Downsample(nn.Module):
    """Halves height and width of single frames, [B*T, C, H, W]."""

    per_frame = True

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Spatial2xTime2x3DDownsample(nn.Module):
    """Halves height and width and takes 2n+1 frames to n+1, [B, C, T, H, W]."""

    per_frame = False

    def __init__(self, channels: int):
        super().__init__()
        self.conv = CausalConv3d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class SpatialUpsample2x(nn.Module):
    """Doubles height and width (nearest), [B, C, T, H, W]."""

    per_frame = False

    def __init__(self, channels: int):
        super().__init__()
        self.conv = CausalConv3d(channels, channels, (1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=(1, 2, 2), mode="nearest"))


class Spatial2xTime2x3DUpsample(nn.Module):
    """Doubles height and width and takes n+1 frames to 2n+1 (trilinear, the first frame by itself), [B, C, T, H, W]."""

    per_frame = False

    def __init__(self, channels: int):
        super().__init__()
        self.conv = CausalConv3d(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        first = F.interpolate(x[:, :, :1], scale_factor=(1, 2, 2), mode="trilinear")
        if x.shape[2] == 1:
            return self.conv(first)
        rest = F.interpolate(x[:, :, 1:], scale_factor=(2, 2, 2), mode="trilinear")
        return self.conv(torch.cat([first, rest], dim=2))


CONVOLUTIONS: Mapping[str, type[nn.Module]] = {"CausalConv3d": CausalConv3d, "Conv2d": Conv2d}
RESNETS: Mapping[str, type[nn.Module]] = {"ResnetBlock2D": ResnetBlock2D, "ResnetBlock3D": ResnetBlock3D}
ATTENTIONS: Mapping[str, type[nn.Module]] = {"AttnBlock3DFix": AttnBlock3DFix}
DOWNSAMPLES: Mapping[str, type[nn.Module]] = {
    "Downsample": Downsample,
    "Spatial2xTime2x3DDownsample": Spatial2xTime2x3DDownsample,
}
UPSAMPLES: Mapping[str, type[nn.Module]] = {
    "SpatialUpsample2x": SpatialUpsample2x,
    "Spatial2xTime2x3DUpsample": Spatial2xTime2x3DUpsample,
}


def choose(kinds: Mapping[str, type[nn.Module]], config: Any, key: str, level: int | None = None) -> type[nn.Module]:
    """The block that `config` names under `key` (for one level of several). Raises ValueError."""
    name = config[key] if level is None else config[key][level]
    if name not in kinds:
        where = key if level is None else f"{key}[{level}]"
        raise ValueError(f"{where}: there is no block {name!r} here; known: {', '.join(kinds)}")
    return kinds[name]


def chain(blocks: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Apply `blocks` in order to a video [B, C, T, H, W]; those that see single frames run a few at a time."""
    for per_frame, group in groupby(blocks, key=lambda block: block.per_frame):
        run = tuple(group)
        if not per_frame:
            x = _run(run, x)
            continue
        # Frames do not meet here, so their intermediates need not be there at once.
        few = x.shape[2] if torch.is_grad_enabled() else CHUNK
        done = [
            _run(run, some.transpose(1, 2).flatten(0, 1)).unflatten(0, (x.shape[0], -1)).transpose(1, 2)
            for some in x.split(few, dim=2)
        ]
        x = torch.cat(done, dim=2) if len(done) > 1 else done[0]
    return x


def _run(blocks: Sequence[nn.Module], x: Tensor) -> Tensor:
    for block in blocks:
        x = block(x)
    return x
