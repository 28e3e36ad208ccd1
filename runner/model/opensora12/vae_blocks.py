"""The temporal half of the autoencoder of Open-Sora 1.2: latents of frames [B, 4, T, h, w] to a fourth of the frames.

Convolutions over time are causal; the group norms average over the whole clip, so that a result depends on how many
frames are taken at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn


class CausalConv3d(nn.Module):
    """Convolution [B, C, T, H, W] whose window ends at its own frame; what is before the first frame is zero."""

    def __init__(
        self, channels: int, out_channels: int, kernel: int = 3, time_stride: int = 1, bias: bool = True
    ) -> None:
        super().__init__()
        self.lead = kernel - time_stride
        self.conv = nn.Conv3d(
            channels, out_channels, kernel, (time_stride, 1, 1), (0, kernel // 2, kernel // 2), bias=bias
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 0, 0, 0, self.lead, 0)))


class ResBlock(nn.Module):
    """Residual block of two causal 3x3x3 convolutions."""

    def __init__(self, channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels)
        self.conv1 = CausalConv3d(channels, out_channels, bias=False)
        self.norm2 = nn.GroupNorm(groups, out_channels)
        self.conv2 = CausalConv3d(out_channels, out_channels, bias=False)
        if channels != out_channels:
            self.conv3 = CausalConv3d(channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (self.conv3(x) if hasattr(self, "conv3") else x)


def _blocks(channels: int, width: int, depth: int, groups: int) -> nn.ModuleList:
    return nn.ModuleList(ResBlock(channels if i == 0 else width, width, groups) for i in range(depth))


def _run(blocks: nn.ModuleList, x: Tensor) -> Tensor:
    for block in blocks:
        x = block(x)
    return x


class Encoder(nn.Module):
    """[B, channels, T, h, w] -> [B, out_channels, T / 4, h, w], before the quant convolution."""

    def __init__(
        self, channels: int, out_channels: int, filters: int, widths: Sequence[int], halves: Sequence[bool], depth: int,
        groups: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv_in = CausalConv3d(channels, filters, bias=False)
        self.block_res_blocks = nn.ModuleList(
            _blocks(before, width, depth, groups) for before, width in zip([filters, *widths], widths, strict=False)
        )
        self.conv_blocks = nn.ModuleList(
            CausalConv3d(width, width, time_stride=2) if half else nn.Identity()
            for width, half in zip(widths, halves, strict=False)
        )
        self.res_blocks = _blocks(widths[-1], widths[-1], depth, groups)
        self.norm1 = nn.GroupNorm(groups, widths[-1])
        self.conv2 = CausalConv3d(widths[-1], out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level, blocks in enumerate(self.block_res_blocks):
            x = _run(blocks, x)  # type: ignore[arg-type]  # indexing a ModuleList forgets what is in it
            if level < len(self.conv_blocks):
                x = self.conv_blocks[level](x)
        return self.conv2(F.silu(self.norm1(_run(self.res_blocks, x))))


class Decoder(nn.Module):
    """[B, channels, t, h, w], after the post-quant convolution -> [B, out_channels, 4 t, h, w]."""

    def __init__(
        self, channels: int, out_channels: int, filters: int, widths: Sequence[int], halves: Sequence[bool], depth: int,
        groups: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv1 = CausalConv3d(channels, widths[-1])
        self.res_blocks = _blocks(widths[-1], widths[-1], depth, groups)
        self.block_res_blocks = nn.ModuleList(
            _blocks(before, width, depth, groups)
            for before, width in zip([*widths[1:], widths[-1]], widths, strict=True)
        )
        # Each doubles the channels, which then become twice the frames.
        self.conv_blocks = nn.ModuleList(
            CausalConv3d(width, 2 * width) if half else nn.Identity()
            for width, half in zip(widths[1:], halves, strict=False)
        )
        self.norm1 = nn.GroupNorm(groups, widths[0])
        self.conv_out = CausalConv3d(widths[0], out_channels)

    def forward(self, z: Tensor) -> Tensor:
        x = _run(self.res_blocks, self.conv1(z))
        for level in reversed(range(len(self.block_res_blocks))):
            x = _run(self.block_res_blocks[level], x)  # type: ignore[arg-type]
            if level and not isinstance(change := self.conv_blocks[level - 1], nn.Identity):
                x = _to_time(change(x))
        return self.conv_out(F.silu(self.norm1(x)))


def _to_time(x: Tensor) -> Tensor:
    """[B, 2 C, T, H, W] -> [B, C, 2 T, H, W]: neighboring channels become neighboring frames."""
    return x.unflatten(1, (-1, 2)).permute(0, 1, 3, 2, 4, 5).flatten(2, 3)


class TemporalVAE(nn.Module):
    """Encodes T frames' latents to ceil(T / 4); the clip is filled up with zeros at its start."""

    def __init__(
        self,
        in_out_channels: int = 4,
        latent_embed_dim: int = 4,
        embed_dim: int = 4,
        filters: int = 128,
        num_res_blocks: int = 4,
        channel_multipliers: Sequence[int] = (1, 2, 2, 4),
        temporal_downsample: Sequence[bool] = (False, True, True),
        num_groups: int = 32,
    ) -> None:
        super().__init__()
        if len(temporal_downsample) != len(channel_multipliers) - 1:
            raise ValueError(
                f"temporal_downsample has {len(temporal_downsample)} entries for {len(channel_multipliers)} levels"
            )
        widths = [filters * multiple for multiple in channel_multipliers]
        shape = (filters, widths, temporal_downsample, num_res_blocks, num_groups)
        self.factor = 2 ** sum(map(bool, temporal_downsample))
        self.encoder = Encoder(in_out_channels, 2 * latent_embed_dim, *shape)
        self.quant_conv = CausalConv3d(2 * latent_embed_dim, 2 * embed_dim, 1)
        self.post_quant_conv = CausalConv3d(embed_dim, latent_embed_dim, 1)
        self.decoder = Decoder(latent_embed_dim, in_out_channels, *shape)

    def encode(self, x: Tensor) -> DiagonalGaussianDistribution:
        """The distribution of the latents [B, 4, t, h, w] of frames' latents [B, 4, T, h, w]."""
        x = F.pad(x, (0, 0, 0, 0, -x.shape[2] % self.factor, 0))
        return DiagonalGaussianDistribution(self.quant_conv(self.encoder(x)))

    def decode(self, z: Tensor, num_frames: int) -> Tensor:
        """Frames' latents [B, 4, num_frames, h, w] of latents: the last ones, as encode put what it added first."""
        x = self.decoder(self.post_quant_conv(z))
        return x[:, :, -num_frames % self.factor :]
