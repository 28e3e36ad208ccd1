"""The diffusion transformer of Open-Sora-Plan v1.2 (OpenSoraT2V-ROPE-L/122), after PixArt-alpha (arXiv 2310.00426)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import nn

from ..checkpoint import PretrainedModel
from .layers import AdaLayerNormSingle, CaptionProjection, OSP12Block, PatchEmbed
from .rope import Rotary, rotary_table

DROPPED = (
    -10000.0
)  # added to the attention logits of a masked key, as in the reference: finite, so that no row becomes NaN


class OSP12Transformer(PretrainedModel):
    """Predicts the noise of a latent video.

    The arguments are the keys of the released config.json, the defaults those of the 93x720p release (2,771,907,856
    parameters). A value that is not implemented raises ValueError; a key that names a training choice or a kernel
    (attention_mode, num_embeds_ada_norm, use_stable_fp32 ...) is accepted and has no effect.
    """

    _no_split_modules = ["OSP12Block"]  # type: ignore[assignment]  # None in ModelMixin
    _repeated_blocks = ["OSP12Block"]

    @register_to_config
    def __init__(
        self,
        num_attention_heads: int = 24,
        attention_head_dim: int = 96,
        in_channels: int = 4,
        out_channels: int | None = 4,
        num_layers: int = 32,
        dropout: float = 0.0,
        norm_num_groups: int = 32,
        cross_attention_dim: int | None = 2304,
        attention_bias: bool = True,
        sample_size: int | Sequence[int] = (90, 160),
        sample_size_t: int = 24,
        num_vector_embeds: int | None = None,
        patch_size: int = 2,
        patch_size_t: int = 1,
        activation_fn: str = "gelu-approximate",
        num_embeds_ada_norm: int | None = 1000,
        use_linear_projection: bool = False,
        only_cross_attention: bool = False,
        double_self_attention: bool = False,
        upcast_attention: bool = False,
        norm_type: str = "ada_norm_single",
        norm_elementwise_affine: bool = False,
        norm_eps: float = 1e-6,
        attention_type: str = "default",
        caption_channels: int = 4096,
        interpolation_scale_h: float | None = None,
        interpolation_scale_w: float | None = None,
        interpolation_scale_t: float | None = None,
        use_additional_conditions: bool | None = None,
        attention_mode: str = "xformers",
        downsampler: str | None = None,
        use_rope: bool = True,
        use_stable_fp32: bool = False,
    ) -> None:
        super().__init__()
        dim = num_attention_heads * attention_head_dim
        _refuse_unsupported(self.config, dim)
        self.patch_size, self.head_dim = patch_size, attention_head_dim
        self.out_channels = in_channels if out_channels is None else out_channels
        self.interpolation_scales = _interpolation_scales(self.config)
        self.pos_embed = PatchEmbed(in_channels, dim, patch_size)
        self.adaln_single = AdaLayerNormSingle(dim)
        self.caption_projection = CaptionProjection(caption_channels, dim)
        self.transformer_blocks = nn.ModuleList(
            OSP12Block(dim, num_attention_heads, attention_bias, norm_elementwise_affine, norm_eps, dropout)
            for _ in range(num_layers)
        )
        self.norm_out = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.scale_shift_table = nn.Parameter(torch.randn(2, dim) / dim**0.5)
        self.proj_out = nn.Linear(dim, patch_size**2 * self.out_channels)
        self._rotary: tuple[tuple[Any, ...], Rotary] | None = None

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        added_cond_kwargs: dict[str, Any] | None = None,
        class_labels: torch.Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        attention_mask: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        use_image_num: int = 0,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """Noise of a latent video, [B,out_channels,T,H,W]. The arguments are in the reference's order: recorded calls
        are positional.

        hidden_states: [B,C,T,H,W], H and W multiples of the patch size. timestep: [B] or a scalar, may be fractional.
        encoder_hidden_states: [B,1,L,caption_channels] or [B,L,caption_channels]. attention_mask: [B,T,H,W], 1 keeps; a
        patch is kept when any of it is. encoder_attention_mask: [B,1,L] or [B,L], 1 keeps. added_cond_kwargs,
        class_labels and cross_attention_kwargs have no effect, as in the reference. Raises ValueError on a shape that
        does not fit.
        """
        if use_image_num:
            raise ValueError(
                f"use_image_num is {use_image_num}; joint training on video and images is not implemented, pass 0"
            )
        batch, _, frames, height, width = hidden_states.shape
        patch = self.patch_size
        if height % patch or width % patch:
            raise ValueError(f"latent height and width are {height} and {width}; both must be multiples of {patch}")
        grid = (frames, height // patch, width // patch)
        dtype = self.scale_shift_table.dtype  # that of the tokens; `self.dtype` walks through every parameter

        bias = _token_bias(attention_mask, patch, dtype)
        encoder_bias = _text_bias(encoder_attention_mask, dtype)
        tokens = self.pos_embed(hidden_states.to(dtype))
        embedded, modulation = self.adaln_single(timestep.expand(batch), dtype)
        text = self.caption_projection(_text(encoder_hidden_states).to(dtype))
        rotary = self._rotary_table(grid, tokens.device, dtype)
        for block in self.transformer_blocks:
            tokens = block(tokens, bias, text, encoder_bias, modulation, rotary)

        shift, scale = (self.scale_shift_table + embedded[:, None]).chunk(2, dim=1)
        tokens = self.proj_out(self.norm_out(tokens) * (1 + scale) + shift)
        tokens = tokens.reshape(batch, *grid, patch, patch, self.out_channels)
        sample = torch.einsum("nthwpqc->ncthpwq", tokens).reshape(batch, self.out_channels, frames, height, width)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def _rotary_table(self, grid: tuple[int, int, int], device: torch.device, dtype: torch.dtype) -> Rotary:
        """The table of the last call when nothing that it depends on has changed: the calls of one video share it."""
        key = (grid, self.head_dim, self.interpolation_scales, device, dtype)
        if self._rotary is None or self._rotary[0] != key:
            self._rotary = (key, rotary_table(*key))
        return self._rotary[1]


def _text(encoder_hidden_states: torch.Tensor) -> torch.Tensor:
    if encoder_hidden_states.ndim == 3:
        return encoder_hidden_states
    if encoder_hidden_states.ndim != 4 or encoder_hidden_states.shape[1] != 1:
        raise ValueError(f"encoder_hidden_states is {list(encoder_hidden_states.shape)}; expected [B,1,L,D] or [B,L,D]")
    return encoder_hidden_states.squeeze(1)


def _token_bias(mask: torch.Tensor | None, patch: int, dtype: torch.dtype) -> torch.Tensor | None:
    """Mask [B,T,H,W] -> [B,1,1,tokens], or None when it drops nothing: attention over all tokens is so much faster
    without a bias that asking the device is worth the wait. The pipeline, which drops nothing, passes None."""
    if mask is None:
        return None
    if mask.ndim != 4:
        raise ValueError(f"attention_mask is {list(mask.shape)}; expected [B,T,H,W] in latent pixels")
    kept = F.max_pool2d(mask.float(), kernel_size=patch).flatten(1) != 0
    return None if bool(kept.all()) else (~kept).to(dtype)[:, None, None] * DROPPED


def _text_bias(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """Mask [B,1,L] or [B,L] -> [B,1,1,L], or None when it drops nothing and asking costs no wait for a device."""
    if mask is None or (mask.device.type == "cpu" and bool((mask == 1).all())):
        return None
    if mask.ndim not in (2, 3) or (mask.ndim == 3 and mask.shape[1] != 1):
        raise ValueError(f"encoder_attention_mask is {list(mask.shape)}; expected [B,1,L] or [B,L]")
    return ((1 - mask.to(dtype)) * DROPPED).reshape(mask.shape[0], 1, 1, -1)


def _interpolation_scales(config: Any) -> tuple[float, float, float]:
    """Time, height and width; where the config has none, the ratio to the grid of the base training."""
    size, frames = config.sample_size, config.sample_size_t
    height, width = (size, size) if isinstance(size, int) else size
    default = ((frames - 1) // 16 + 1 if frames % 2 else frames / 16, height / 30, width / 40)
    given = (config.interpolation_scale_t, config.interpolation_scale_h, config.interpolation_scale_w)
    t, h, w = (float(d if g is None else g) for g, d in zip(given, default, strict=True))
    return t, h, w


def _refuse_unsupported(config: Any, dim: int) -> None:
    only = {
        "norm_type": "ada_norm_single",
        "activation_fn": "gelu-approximate",
        "attention_type": "default",
        "patch_size_t": 1,
        "use_rope": True,
        "cross_attention_dim": dim,
    }
    wrong = [
        f"{key} is {config[key]!r}, only {value!r} is implemented"
        for key, value in only.items()
        if config[key] != value
    ]
    unset = ("downsampler", "only_cross_attention", "double_self_attention", "upcast_attention")
    wrong += [
        f"{key} is {config[key]!r}, only {None if key == 'downsampler' else False!r} is implemented"
        for key in unset
        if config[key]
    ]
    if config.attention_head_dim % 6:
        wrong.append(f"attention_head_dim is {config.attention_head_dim}, three rotary axes need a multiple of 6")
    if config.caption_channels is None:
        wrong.append("caption_channels is None, the width of the text embeddings is needed")
    if wrong:
        raise ValueError("This Open-Sora-Plan v1.2 transformer config is not supported: " + "; ".join(wrong))
