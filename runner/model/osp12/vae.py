"""Causal video autoencoder of Open-Sora-Plan v1.2 (CausalVAEModel, 4x in time and 8x8 in space, 4 latent channels)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Generator, Tensor, nn

from ..checkpoint import CheckpointError, PretrainedModel, read_ckpt
from .vae_blocks import (
    ATTENTIONS,
    CONVOLUTIONS,
    DOWNSAMPLES,
    RESNETS,
    UPSAMPLES,
    activated,
    chain,
    choose,
    group_norm,
)
from .vae_tiling import exceeds, stride_and_keep, tiled


class Level(nn.Module):
    """Residual blocks at one resolution, and what changes the resolution after them."""

    def __init__(self, kind: type[nn.Module], channels: int, width: int, depth: int, dropout: float):
        super().__init__()
        self.block = nn.ModuleList(kind(channels if i == 0 else width, width, dropout) for i in range(depth))


def in_order(levels: Iterable[nn.Module]) -> list[nn.Module]:
    """The blocks of some levels as they run."""
    blocks: list[nn.Module] = []
    for level in levels:
        residual, *change = level.children()
        blocks += [*residual.children(), *change]
    return blocks


class Middle(nn.Module):
    """Two residual blocks around one attention."""

    def __init__(self, kind: type[nn.Module], attention: type[nn.Module], channels: int, dropout: float):
        super().__init__()
        self.block_1 = kind(channels, channels, dropout)
        self.attn_1 = attention(channels)
        self.block_2 = kind(channels, channels, dropout)


class Encoder(nn.Module):
    """Video [B, 3, T, H, W] -> [B, 2*z_channels, t, h, w], before the quant convolution."""

    def __init__(self, config: Any):
        super().__init__()
        channels, dropout = config.hidden_size, config.dropout
        self.conv_in = choose(CONVOLUTIONS, config, "encoder_conv_in")(3, channels)
        self.down = nn.ModuleList()
        for i, multiple in enumerate(config.hidden_size_mult):
            width = config.hidden_size * multiple
            kind = choose(RESNETS, config, "encoder_resnet_blocks", i)
            level = Level(kind, channels, width, config.num_res_blocks, dropout)
            if config.encoder_spatial_downsample[i]:
                kind = choose(DOWNSAMPLES, config, "encoder_spatial_downsample", i)
                level.add_module("downsample", kind(width))
            self.down.append(level)
            channels = width
        kind, attention = choose(RESNETS, config, "encoder_mid_resnet"), choose(ATTENTIONS, config, "encoder_attention")
        self.mid = Middle(kind, attention, channels, dropout)
        self.norm_out = group_norm(channels)
        out_channels = config.z_channels * (2 if config.double_z else 1)
        self.conv_out = choose(CONVOLUTIONS, config, "encoder_conv_out")(channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = chain([self.conv_in, *in_order(self.down), *self.mid.children()], x)
        return chain([self.conv_out], activated(self.norm_out, x))


class Decoder(nn.Module):
    """Latents [B, z_channels, t, h, w], after the post-quant convolution -> video [B, 3, T, H, W]."""

    def __init__(self, config: Any):
        super().__init__()
        channels, dropout = config.hidden_size * config.hidden_size_mult[-1], config.dropout
        self.conv_in = choose(CONVOLUTIONS, config, "decoder_conv_in")(config.z_channels, channels)
        kind, attention = choose(RESNETS, config, "decoder_mid_resnet"), choose(ATTENTIONS, config, "decoder_attention")
        self.mid = Middle(kind, attention, channels, dropout)
        levels = []
        for i in reversed(range(len(config.hidden_size_mult))):
            width = config.hidden_size * config.hidden_size_mult[i]
            kind = choose(RESNETS, config, "decoder_resnet_blocks", i)
            level = Level(kind, channels, width, config.num_res_blocks + 1, dropout)
            if config.decoder_spatial_upsample[i]:
                kind = choose(UPSAMPLES, config, "decoder_spatial_upsample", i)
                level.add_module("upsample", kind(width))
            levels.append(level)
            channels = width
        self.up = nn.ModuleList(reversed(levels))  # counted from the finest, run from the coarsest
        self.norm_out = group_norm(channels)
        self.conv_out = choose(CONVOLUTIONS, config, "decoder_conv_out")(channels, 3)

    def forward(self, z: Tensor) -> Tensor:
        x = chain([self.conv_in, *self.mid.children(), *in_order(reversed(self.up))], z)
        return chain([self.conv_out], activated(self.norm_out, x))


class OSP12VAE(PretrainedModel):
    """Encodes video [B, 3, T, H, W] in [-1, 1], T = 4n+1, to latents [B, 4, n+1, H/8, W/8] and back.

    Keys, config and results are those of the released CausalVAEModel. Latents are as the encoder makes them: it is the
    pipeline that multiplies by `scaling_factor`. A folder's *.ckpt is preferred to its safetensors, as released.
    """

    scaling_factor = 0.18215
    unsaved = ("loss",)  # a training checkpoint also holds the perceptual loss and the discriminator

    @register_to_config
    def __init__(
        self,
        hidden_size: int = 128,
        z_channels: int = 4,
        hidden_size_mult: Sequence[int] = (1, 2, 4, 4),
        attn_resolutions: Sequence[int] = (),
        dropout: float = 0.0,
        resolution: int = 256,
        double_z: bool = True,
        embed_dim: int = 4,
        num_res_blocks: int = 2,
        q_conv: str = "CausalConv3d",
        use_quant_layer: bool = True,
        encoder_conv_in: str = "Conv2d",
        encoder_conv_out: str = "CausalConv3d",
        encoder_attention: str = "AttnBlock3DFix",
        encoder_resnet_blocks: Sequence[str] = ("ResnetBlock2D", "ResnetBlock2D", "ResnetBlock3D", "ResnetBlock3D"),
        encoder_spatial_downsample: Sequence[str] = (
            "Downsample",
            "Spatial2xTime2x3DDownsample",
            "Spatial2xTime2x3DDownsample",
            "",
        ),
        encoder_temporal_downsample: Sequence[str] = ("", "", "", ""),
        encoder_mid_resnet: str = "ResnetBlock3D",
        decoder_conv_in: str = "CausalConv3d",
        decoder_conv_out: str = "CausalConv3d",
        decoder_attention: str = "AttnBlock3DFix",
        decoder_resnet_blocks: Sequence[str] = ("ResnetBlock3D",) * 4,
        decoder_spatial_upsample: Sequence[str] = (
            "",
            "SpatialUpsample2x",
            "Spatial2xTime2x3DUpsample",
            "Spatial2xTime2x3DUpsample",
        ),
        decoder_temporal_upsample: Sequence[str] = ("", "", "", ""),
        decoder_mid_resnet: str = "ResnetBlock3D",
    ):
        super().__init__()
        if attn_resolutions or any(encoder_temporal_downsample) or any(decoder_temporal_upsample):
            raise ValueError(
                "attn_resolutions, encoder_temporal_downsample and decoder_temporal_upsample must be empty, as released"
            )
        for key in (
            "encoder_resnet_blocks",
            "encoder_spatial_downsample",
            "decoder_resnet_blocks",
            "decoder_spatial_upsample",
        ):
            if len(self.config[key]) != len(hidden_size_mult):
                raise ValueError(
                    f"{key} names {len(self.config[key])} levels, hidden_size_mult has {len(hidden_size_mult)}"
                )
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)
        self.quant_conv = self.post_quant_conv = None
        if use_quant_layer:
            conv = choose(CONVOLUTIONS, self.config, "q_conv")
            self.quant_conv = conv(2 * z_channels if double_z else z_channels, 2 * embed_dim, 1)
            self.post_quant_conv = conv(embed_dim, z_channels, 1)
        self.use_tiling = False
        self.tile_sample_min_size, self.tile_latent_min_size = 256, 32
        self.tile_sample_min_size_t, self.tile_latent_min_size_t = 33, 16  # as released, though 33 frames are 9 latents
        self.tile_overlap_factor = 0.125

    @apply_forward_hook
    def encode(self, x: Tensor) -> AutoencoderKLOutput:
        """`.latent_dist` of video [B, 3, T, H, W]: .mean, .logvar in -30..20, .mode(), .sample(generator).

        Its .kl() sums over all but the last axis, as diffusers wrote it for images.
        """
        if self.use_tiling and exceeds(x, self.tile_sample_min_size_t, self.tile_sample_min_size):
            moments = tiled(
                self._encode,
                x,
                frames=self.tile_sample_min_size_t,
                size=self.tile_sample_min_size,
                out_size=self.tile_latent_min_size,
                overlap=self.tile_overlap_factor,
            )
        else:
            moments = self._encode(x)
        return AutoencoderKLOutput(latent_dist=DiagonalGaussianDistribution(moments))

    @apply_forward_hook
    def decode(self, z: Tensor) -> Tensor:
        """Video [B, 3, 4n+1, 8h, 8w] of unscaled latents [B, 4, n+1, h, w]: near [-1, 1], not clamped."""
        if self.use_tiling and exceeds(z, self.tile_latent_min_size_t, self.tile_latent_min_size):
            return tiled(
                self._decode,
                z,
                frames=self.tile_latent_min_size_t,
                size=self.tile_latent_min_size,
                out_size=self.tile_sample_min_size,
                overlap=self.tile_overlap_factor,
            )
        return self._decode(z)

    def forward(
        self, x: Tensor, sample_posterior: bool = True, generator: Generator | None = None
    ) -> tuple[Tensor, DiagonalGaussianDistribution]:
        """Reconstruction of `x` from a sample (or the mode) of its latents, and their distribution, for training."""
        posterior = self.encode(x).latent_dist
        return self.decode(posterior.sample(generator) if sample_posterior else posterior.mode()), posterior

    def enable_tiling(
        self,
        tile_sample_min_size: int | None = None,
        tile_sample_min_size_t: int | None = None,
        tile_overlap_factor: float | None = None,
    ) -> None:
        """Work in tiles of so many pixels (8n) and frames (4n+1) that overlap by a fraction; None keeps what is set.

        Tiles bound memory and change the result: norms average over a tile, and tiles are blended where they meet.
        Raises ValueError if the tiles cannot be cut so, in pixels and in latents.
        """
        size = self.tile_sample_min_size if tile_sample_min_size is None else tile_sample_min_size
        frames = self.tile_sample_min_size_t if tile_sample_min_size_t is None else tile_sample_min_size_t
        overlap = self.tile_overlap_factor if tile_overlap_factor is None else tile_overlap_factor
        if size < 8 or size % 8:
            raise ValueError(f"tile_sample_min_size {size} is not a multiple of 8")
        if frames < 5 or frames % 4 != 1:
            raise ValueError(f"tile_sample_min_size_t {frames} is not 4n+1 with n >= 1")
        stride_and_keep(size, size // 8, overlap)
        stride_and_keep(size // 8, size, overlap)
        self.tile_overlap_factor = overlap
        self.tile_sample_min_size, self.tile_latent_min_size = size, size // 8
        if tile_sample_min_size_t is not None:
            self.tile_sample_min_size_t, self.tile_latent_min_size_t = frames, (frames - 1) // 4 + 1
        self.use_tiling = True

    def enable_guide_tiling(self, tile_overlap_factor: float, save_memory: bool = False) -> None:
        """Tiles as the released sampling scripts set them: 29 frames of 512 pixels, or of 256 with `save_memory`."""
        self.enable_tiling(256 if save_memory else 512, 29, tile_overlap_factor)

    def disable_tiling(self) -> None:
        """Work on whole clips."""
        self.use_tiling = False

    def _encode(self, x: Tensor) -> Tensor:
        x = self.encoder(x)
        return x if self.quant_conv is None else chain([self.quant_conv], x)

    def _decode(self, z: Tensor) -> Tensor:
        return self.decoder(z if self.post_quant_conv is None else chain([self.post_quant_conv], z))

    @classmethod
    def read_state(cls, folder: Path, dtype: torch.dtype, variant: str | None) -> dict[str, Tensor]:
        checkpoints = sorted(folder.glob("*.ckpt"))
        if not checkpoints:
            return super().read_state(folder, dtype, variant)
        if len(checkpoints) > 1:
            raise CheckpointError(f"{folder} holds {len(checkpoints)} .ckpt files, one of which must be chosen")
        return read_ckpt(checkpoints[0], dtype)
