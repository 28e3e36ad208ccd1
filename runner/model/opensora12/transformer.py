"""STDiT3, the diffusion transformer of Open-Sora 1.2 (STDiT3-XL/2), after PixArt-alpha (arXiv 2310.00426)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

from ..checkpoint import PretrainedModel, read_any
from .layers import CaptionEmbedder, FinalLayer, PatchEmbed3D, Rotation, ScalarEmbedder, STDiT3Block, position_embedding

WHOLE_FLOATS = ("rope.freqs",)  # stay float32 whatever the model is read in: 0.4 % of an angle is a radian at frame 250


class OpenSora12Transformer(PretrainedModel):
    """Predicts the velocity (data minus noise) of a latent video.

    The arguments are the keys of the released config.json, the defaults those of STDiT3-XL/2 (1,207,643,972 parameters,
    and 1,228,800 numbers that stand for no text). A value that is not implemented raises ValueError; keys of training
    and of kernels have no effect.
    """

    _no_split_modules = ["STDiT3Block"]  # type: ignore[assignment]  # None in ModelMixin
    _repeated_blocks = ["STDiT3Block"]

    @register_to_config
    def __init__(
        self,
        input_size: Sequence[int | None] = (None, None, None),
        input_sq_size: int = 512,
        in_channels: int = 4,
        patch_size: Sequence[int] = (1, 2, 2),
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        class_dropout_prob: float = 0.1,
        pred_sigma: bool = True,
        drop_path: float = 0.0,
        caption_channels: int = 4096,
        model_max_length: int = 300,
        qk_norm: bool = True,
        qk_norm_legacy: bool = False,
        skip_y_embedder: bool = False,
    ) -> None:
        super().__init__()
        _refuse_unsupported(self.config)
        self.out_channels = 2 * in_channels if pred_sigma else in_channels
        self.in_channels, self.input_sq_size = in_channels, input_sq_size
        _, self.patch_rows, self.patch_columns = patch_size
        self.x_embedder = PatchEmbed3D(in_channels, hidden_size, (1, self.patch_rows, self.patch_columns))
        self.t_embedder = ScalarEmbedder(hidden_size)
        self.fps_embedder = ScalarEmbedder(hidden_size)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size))
        self.y_embedder = CaptionEmbedder(caption_channels, hidden_size, model_max_length)
        self.spatial_blocks, self.temporal_blocks = (
            nn.ModuleList(STDiT3Block(hidden_size, num_heads, mlp_ratio, qk_norm, temporal) for _ in range(depth))
            for temporal in (False, True)
        )
        self.final_layer = FinalLayer(hidden_size, self.patch_rows * self.patch_columns * self.out_channels)
        self.rope = Rotation(hidden_size // num_heads)

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        y: Tensor,
        mask: Tensor | None = None,
        x_mask: Tensor | None = None,
        fps: Tensor | None = None,
        height: Tensor | None = None,
        width: Tensor | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Velocity [B, out_channels, T, H, W] in float32; of the released model's 8 channels the first 4 count.

        x: latents [B, C, T, H, W] of any size. timestep: [B], 0 to 1000. y: text embeddings [B, 1, L, caption_channels]
        or [B, L, caption_channels]. mask: [B, L], of text tokens, not 0 keeps. x_mask: [B, T], of frames, true is
        denoised, false is given and taken to be at timestep 0. fps: [B], 120 for stills, 24 by default. height, width:
        [B], in pixels, 8 a latent by default; those of the first sample count. Rows of mask and fps are repeated, one
        after the other, where there are fewer than B. timestep, fps, height and width are taken in float32 whatever the
        model is in. Raises ValueError on a shape that does not fit.
        """
        batch, _, frames, rows, columns = x.shape
        dtype, device = self.final_layer.scale_shift_table.dtype, x.device
        if x_mask is not None and x_mask.shape != (batch, frames):
            raise ValueError(f"x_mask is {list(x_mask.shape)}; expected [{batch}, {frames}], one value a latent frame")
        fps = torch.full((1,), 24.0, device=device) if fps is None else fps
        text, text_mask = self._text(y.to(dtype), mask, batch)

        tokens = self.x_embedder(x.to(dtype))
        grid = (-(-rows // self.patch_rows), -(-columns // self.patch_columns))
        scale = _side(height, 8 * rows, device) * _side(width, 8 * columns, device)
        position = position_embedding(*grid, tokens.shape[-1], scale.sqrt() / self.input_sq_size).to(dtype)
        tokens = (tokens.unflatten(1, (frames, -1)) + position[:, None]).flatten(1, 2)

        rate = self.fps_embedder(_rows(fps.flatten(), batch, "fps"), dtype)
        t = self.t_embedder(timestep.expand(batch), dtype) + rate
        modulation, t0 = self.t_block(t).unflatten(-1, (1, 6, -1)), None
        if x_mask is not None:
            x_mask = x_mask.bool()
            t0 = self.t_embedder(torch.zeros_like(timestep, dtype=torch.float32).expand(batch), dtype) + rate
            given = self.t_block(t0).unflatten(-1, (1, 6, -1))
            modulation = torch.where(x_mask[:, :, None, None], modulation, given)

        rotary = self.rope(frames, dtype)
        for spatial, temporal in zip(self.spatial_blocks, self.temporal_blocks, strict=True):
            tokens = spatial(tokens, frames, modulation, text, text_mask, rotary)
            tokens = temporal(tokens, frames, modulation, text, text_mask, rotary)

        patches = self.final_layer(tokens.unflatten(1, (frames, -1)), t, t0, x_mask)
        patches = patches.reshape(batch, frames, *grid, self.patch_rows, self.patch_columns, self.out_channels)
        sample = torch.einsum("nthwpqc->ncthpwq", patches).flatten(5, 6).flatten(3, 4)[..., :rows, :columns].float()
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def _text(self, y: Tensor, mask: Tensor | None, batch: int) -> tuple[Tensor, Tensor | None]:
        """Embedded text [B, L, D] and which of it counts, [B, 1, 1, L] or None for all."""
        text = self.y_embedder(y[:, None] if y.ndim == 3 else y)[:, 0]
        if len(text) != batch or (mask is not None and (mask.ndim != 2 or mask.shape[1] != text.shape[1])):
            shape = None if mask is None else list(mask.shape)
            raise ValueError(f"y is {list(y.shape)} and mask {shape}; expected [{batch}, 1, L, D] and [B, L]")
        if mask is None or (mask.device.type == "cpu" and bool(mask.all())):
            return text, None  # attention without a mask is faster; asking another device would be a wait for it
        return text, _rows(mask != 0, batch, "mask")[:, None, None]

    @classmethod
    def read_state(cls, folder: Path, dtype: torch.dtype, variant: str | None) -> dict[str, Tensor]:
        """The tensors of the released folder (model.safetensors, or one .pt or .pth) or of one saved here."""
        return cast_but(read_any(folder, variant=variant), dtype)


def cast_but(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """`state` in `dtype`, but for the floats whose last digits matter."""
    return {name: t.float() if name in WHOLE_FLOATS else t.to(dtype) for name, t in state.items()}


def _rows(values: Tensor, batch: int, name: str) -> Tensor:
    """`values` [n, ...] repeated as a whole to `batch` rows, as guidance repeats them."""
    if batch % len(values):
        raise ValueError(f"{name} has {len(values)} rows for a batch of {batch}")
    return values.repeat(batch // len(values), *[1] * (values.ndim - 1))


def _side(pixels: Tensor | None, default: int, device: torch.device) -> Tensor:
    if pixels is None:
        return torch.tensor(float(default), device=device)
    return pixels.flatten()[0].to(device, torch.float32)


def _refuse_unsupported(config: Any) -> None:
    only = {"qk_norm_legacy": False, "skip_y_embedder": False}
    wrong = [f"{key} is {config[key]!r}, only {only[key]!r} is implemented" for key in only if config[key] != only[key]]
    if len(config.patch_size) != 3 or config.patch_size[0] != 1:
        wrong.append(f"patch_size is {list(config.patch_size)}, only one frame a patch is implemented")
    if config.hidden_size % config.num_heads or config.hidden_size // config.num_heads % 2:
        wrong.append(f"hidden_size {config.hidden_size} does not fall into {config.num_heads} heads of even width")
    if config.hidden_size % 4:
        wrong.append(f"hidden_size is {config.hidden_size}, positions need a multiple of 4")
    if wrong:
        raise ValueError("This STDiT3 config is not supported: " + "; ".join(wrong))
