"""The autoencoder of Open-Sora 1.2: one of frames (8x8, 4 channels), and on it a causal one over time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.utils.accelerate_utils import apply_forward_hook
from diffusers.utils.torch_utils import randn_tensor
from torch import Generator, Tensor, nn

from ..checkpoint import PretrainedModel, build, locate, read_any, read_config
from .sizes import MICRO_FRAMES, latent_sizes
from .vae_blocks import TemporalVAE

# The 2D autoencoder of the release, PixArt-alpha/pixart_sigma_sdxlvae_T5_diffusers.
RELEASED_2D: dict[str, Any] = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
}
TEMPORAL_TYPES = ("VAE_Temporal_SD", "VAE_Temporal")  # the released configuration by its name, or spelled out
SHIFT, SCALE = (-0.10, 0.34, 0.27, 0.98), (3.85, 2.32, 2.33, 3.06)
MICRO_BATCH = 4  # frames that the 2D half takes at a time


class OpenSora12VAE(PretrainedModel):
    """Encodes video [B, 3, F, H, W] in [-1, 1] to latents [B, 4, f, H/8, W/8] of about unit variance, and back.

    Frames go through in chunks of `micro_frame_size` that know nothing of each other. The keys are those of the
    released config.json and `spatial`, the config of the 2D half, which a released folder does not hold (see
    from_pretrained). That half's own scaling_factor has no effect: the release's is 0.18215.
    """

    scaling_factor = 0.18215

    @register_to_config
    def __init__(
        self,
        vae_2d: Mapping[str, Any] | None = None,
        vae_temporal: Mapping[str, Any] | None = None,
        micro_frame_size: int = MICRO_FRAMES,
        spatial: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        options = {key: value for key, value in (vae_temporal or {}).items() if key not in ("type", "from_pretrained")}
        kind = (vae_temporal or {}).get("type", TEMPORAL_TYPES[0])
        if kind not in TEMPORAL_TYPES:
            raise ValueError(f"vae_temporal.type is {kind!r}; it must be one of {', '.join(TEMPORAL_TYPES)}")
        known = {key: value for key, value in (spatial or RELEASED_2D).items() if not key.startswith("_")}
        self.spatial_vae = nn.ModuleDict()
        self.spatial_vae.add_module("module", AutoencoderKL(**known))  # type: ignore[arg-type]  # diffusers is untyped
        self.temporal_vae = TemporalVAE(**options)
        self.micro_frame_size, self.micro_batch_size = micro_frame_size, MICRO_BATCH
        # Of the latents; a checkpoint brings its own. They stay in float32, and with them the latents.
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, -1, 1, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(1, -1, 1, 1, 1))

    @property
    def spatial(self) -> Any:
        """The 2D half, an AutoencoderKL."""
        return self.spatial_vae["module"]

    @apply_forward_hook
    def encode(
        self,
        video: Tensor,
        generator: Generator | None = None,
        sample_posterior: bool = True,
        noise_spatial: Tensor | None = None,
        noise_temporal: Tensor | None = None,
    ) -> Tensor:
        """Latents of a video [B, 3, F, H, W], in float32; F is any, H and W are at least 8.

        Both halves' latents are drawn from their distributions, or are their means without `sample_posterior`.
        The noise is drawn from `generator` or given: noise_spatial [B*F, 4, H/8, W/8], noise_temporal [B, 4, f, h, w].
        """
        dtype, draw = self.dtype, Draw(generator, sample_posterior)
        batch, frames = video.shape[0], video.shape[2]
        images = video.to(dtype).transpose(1, 2).flatten(0, 1)
        latents = []
        for start in range(0, len(images), self.micro_batch_size):
            micro = slice(start, start + self.micro_batch_size)
            posterior = self.spatial.encode(images[micro]).latent_dist
            noise = None if noise_spatial is None else noise_spatial[micro]
            latents.append(draw(posterior, noise) * self.scaling_factor)
        x = torch.cat(latents).unflatten(0, (batch, frames)).transpose(1, 2)

        chunks, done = [], 0
        for chunk in x.split(self.micro_frame_size, dim=2):
            posterior = self.temporal_vae.encode(chunk)
            length = posterior.mean.shape[2]
            noise = None if noise_temporal is None else noise_temporal[:, :, done : done + length]
            chunks.append(draw(posterior, noise))
            done += length
        return (torch.cat(chunks, dim=2) - self.shift) / self.scale

    @apply_forward_hook
    def decode(self, z: Tensor, num_frames: int) -> Tensor:
        """Video [B, 3, num_frames, 8 h, 8 w] of latents: near [-1, 1], not clamped.

        Raises ValueError if these are not the latents of so many frames.
        """
        frames = self.micro_frame_size
        length = self.latent_size(num_frames, 8, 8)[0]
        if z.shape[2] != length:
            raise ValueError(f"{num_frames} frames have {length} latent frames, and {z.shape[2]} are given")
        z = (z * self.scale + self.shift).to(self.dtype)
        whole = -(-frames // self.temporal_vae.factor)
        x = torch.cat(
            [
                self.temporal_vae.decode(chunk, min(frames, num_frames - number * frames))
                for number, chunk in enumerate(z.split(whole, dim=2))
            ],
            dim=2,
        )
        images = x.transpose(1, 2).flatten(0, 1) / self.scaling_factor
        decoded = [self.spatial.decode(some).sample for some in images.split(self.micro_batch_size)]
        return torch.cat(decoded).unflatten(0, (len(z), -1)).transpose(1, 2)

    def forward(
        self, video: Tensor, noise_spatial: Tensor | None = None, noise_temporal: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The reconstruction of a video, and its latents."""
        latents = self.encode(video, noise_spatial=noise_spatial, noise_temporal=noise_temporal)
        return self.decode(latents, video.shape[2]), latents

    def latent_size(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Shape (frames, height, width) of the latents of a video."""
        return latent_sizes(frames, height, width, self.micro_frame_size)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        torch_dtype: torch.dtype | None = None,
        subfolder: str | None = None,
        vae2d: str | Path | None = None,
        **options: Any,
    ) -> OpenSora12VAE:
        """The VAE of a released folder or hub id (OpenSora-VAE-v1.2), in `torch_dtype` (float32) and eval mode.

        vae2d: folder (or hub id) of the 2D half's config.json; None: where the checkpoint's own config says, if that is
        a folder inside it or beside it, else the release's. Its weights are not read: the checkpoint has trained ones,
        which are not the same. Raises CheckpointError and TypeError as PretrainedModel does.
        """
        places = {key: options.pop(key, None) for key in ("revision", "cache_dir", "token")}
        local, variant = bool(options.pop("local_files_only", False)), options.pop("variant", None)
        cls.refuse(options)
        folder = locate(pretrained_model_name_or_path, subfolder, local_files_only=local, **places)
        config = read_config(folder)
        if config.get("spatial") is None and (where := _folder_2d(vae2d, config, folder)) is not None:
            config["spatial"] = {key: value for key, value in read_config(where).items() if not key.startswith("_")}
        state = read_any(folder, variant=variant)
        dtype = torch_dtype or torch.float32
        state = {name: t.float() if name in ("shift", "scale") else t.to(dtype) for name, t in state.items()}
        return build(cls, config, state, str(folder))


class Draw:
    """Samples of distributions: with noise that is given, or drawn, or with none."""

    def __init__(self, generator: Generator | None, sample: bool) -> None:
        self.generator, self.sample = generator, sample

    def __call__(self, posterior: DiagonalGaussianDistribution, noise: Tensor | None) -> Tensor:
        mean = posterior.mean
        if noise is None:
            if not self.sample:
                return mean
            noise = randn_tensor(mean.shape, generator=self.generator, device=mean.device, dtype=mean.dtype)
        return mean + posterior.std * noise.to(mean.device, mean.dtype)


def _folder_2d(given: str | Path | None, config: Mapping[str, Any], folder: Path) -> Path | None:
    """The folder of the 2D half's config."""
    if given is not None:
        where = locate(given)
        return where / "vae" if (where / "vae" / "config.json").is_file() else where
    named = config.get("vae_2d") or {}
    name, inner = named.get("from_pretrained"), named.get("subfolder") or ""
    if not name:
        return None
    return next(_existing(Path(name).expanduser(), inner, folder), None)


def _existing(name: Path, inner: str, folder: Path) -> Iterator[Path]:
    for place in (folder / name / inner, folder.parent / name / inner):
        if (place / "config.json").is_file():
            yield place
