"""The parts of STDiT3, the transformer of Open-Sora 1.2, under the module names of the released checkpoint.

Every matrix product is an `nn.Linear` called as a module, so that a quantizer can exchange it by its dotted name, and a
block takes and returns the tokens as its first argument, so that a cache can hook it. In shapes: B batch, T frames,
S tokens of a frame, L text tokens, D = heads * head_dim.
"""

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

from ..attention import Attending

SINUSOIDS = 256


class RMSNorm(nn.Module):
    """x / sqrt(mean x^2 + eps) * weight over the last axis, in float32 (arXiv 1910.07467)."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        return self.weight * (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)


class Rotation(nn.Module):
    """Rotary embedding of frames (arXiv 2104.09864) over all of a head's channels, in pairs of neighbors.

    `freqs` [head_dim / 2] is a tensor of the checkpoint. It and the angles stay in float32 whatever the tokens are in.
    """

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        exponent = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        self.freqs = nn.Parameter(10000.0**-exponent, requires_grad=False)

    def forward(self, frames: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosine and sine [T, head_dim / 2] for frames 0, 1 ..."""
        position = torch.arange(frames, dtype=torch.float32, device=self.freqs.device)
        angle = torch.outer(position, self.freqs.float())
        return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair of neighboring channels of x [..., T, head_dim] by the angle of its frame."""
    cos, sin = rotary
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)


class SelfAttention(Attending):
    """Multi-head attention within x [N, K, D]; queries and keys are normalized by head, then rotated."""

    def __init__(self, dim: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = RMSNorm(dim // heads) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(dim // heads) if qk_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None = None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        return self.proj(self.attend(q, k, v).transpose(1, 2).flatten(2))


class CrossAttention(Attending):
    """Multi-head attention of x [B, K, D] to text [B, L, D], of which `mask` [B, 1, 1, L] keeps what is true."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_linear = nn.Linear(dim, dim)
        self.kv_linear = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
        q = self.q_linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv_linear(text).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(self.attend(q, k, v, mask).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Linear, GELU in its tanh form, linear."""

    def __init__(self, dim: int, inner: int, out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, inner)
        self.fc2 = nn.Linear(inner, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm without parameters, then x * (1 + scale) + shift."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class STDiT3Block(nn.Module):
    """Self-attention, within frames or along time, and feed-forward, both modulated and gated by the timestep; between
    them cross-attention to the text, which has neither norm nor gate."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, qk_norm: bool, temporal: bool) -> None:
        super().__init__()
        self.temporal = temporal
        self.scale_shift_table = nn.Parameter(torch.randn(6, dim) / dim**0.5)
        self.attn = SelfAttention(dim, heads, qk_norm)
        self.cross_attn = CrossAttention(dim, heads)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), dim)

    def forward(
        self,
        hidden_states: Tensor,
        frames: int,
        modulation: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor | None,
        rotary: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Tokens [B, T*S, D] -> the same. modulation [B, 1 or T, 6, D]; text [B, L, D]; mask [B, 1, 1, L] or None."""
        x = hidden_states.unflatten(1, (frames, -1))
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = (self.scale_shift_table + modulation).chunk(6, dim=2)
        y = modulate(x, shift, scale)
        if self.temporal:
            y = self.attn(y.transpose(1, 2).flatten(0, 1), rotary).unflatten(0, (len(x), -1)).transpose(1, 2)
        else:
            y = self.attn(y.flatten(0, 1)).unflatten(0, (len(x), -1))
        x = (x + gate * y).flatten(1, 2)
        x = x + self.cross_attn(x, encoder_hidden_states, encoder_attention_mask)
        x = x.unflatten(1, (frames, -1))
        return (x + mlp_gate * self.mlp(modulate(x, mlp_shift, mlp_scale))).flatten(1, 2)


class PatchEmbed3D(nn.Module):
    """Latents [B, C, T, H, W] -> tokens [B, T*S, D]; what is missing of the last patches is zero."""

    def __init__(self, channels: int, dim: int, patch_size: tuple[int, int, int]) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv3d(channels, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        _, rows, columns = self.patch_size
        x = F.pad(x, (0, -x.shape[4] % columns, 0, -x.shape[3] % rows))
        return self.proj(x).flatten(2).transpose(1, 2)


class ScalarEmbedder(nn.Module):
    """Numbers [B] -> [B, D], by 256 sinusoids, cosines first, with angles in float32."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(SINUSOIDS, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        sinusoids = get_timestep_embedding(value.float(), SINUSOIDS, flip_sin_to_cos=True, downscale_freq_shift=0)
        return self.mlp(sinusoids.to(dtype))


class CaptionEmbedder(nn.Module):
    """Text embeddings [B, 1, L, channels] -> [B, 1, L, D]; `y_embedding` [L, channels] is what stands for no text."""

    def __init__(self, channels: int, dim: int, length: int) -> None:
        super().__init__()
        # A buffer in the reference; here a parameter, so that whatever carries the parameters carries it.
        self.y_embedding = nn.Parameter(torch.randn(length, channels) / channels**0.5, requires_grad=False)
        self.y_proj = Mlp(channels, dim, dim)

    def forward(self, y: Tensor) -> Tensor:
        return self.y_proj(y)


class FinalLayer(nn.Module):
    """Modulated tokens [B, T, S, D] -> patches [B, T, S, out]."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.randn(2, dim) / dim**0.5)
        self.linear = nn.Linear(dim, out)

    def forward(self, x: Tensor, t: Tensor, t0: Tensor | None, x_mask: Tensor | None) -> Tensor:
        """t, t0: embeddings [B, D] of the timestep and of 0; x_mask [B, T]: frames that the timestep holds for.

        A frame that is kept is normalized and modulated twice, first with t: so it is in the released model's training.
        """
        shift, scale = (self.scale_shift_table + t[:, None]).unsqueeze(1).chunk(2, dim=2)
        x = modulate(x, shift, scale)
        if x_mask is not None and t0 is not None:
            shift, scale = (self.scale_shift_table + t0[:, None]).unsqueeze(1).chunk(2, dim=2)
            x = torch.where(x_mask[:, :, None, None], x, modulate(x, shift, scale))
        return self.linear(x)


def position_embedding(rows: int, columns: int, dim: int, scale: Tensor) -> Tensor:
    """Sinusoids [1, rows * columns, dim] in float32 of a frame's patches, row by row; the first half is the column's.

    scale (scalar): the side of the frame in units of the size that the model was trained with first. Both axes are
    stretched to a square of as many patches.
    """
    frequency = 1.0 / 10000.0 ** (torch.arange(0, dim // 2, 2, dtype=torch.float32, device=scale.device) / (dim // 2))
    base = round((rows * columns) ** 0.5)

    def axis(length: int) -> Tensor:
        grid = torch.arange(length, dtype=torch.float32, device=scale.device) / scale * (base / length)
        angle = torch.outer(grid, frequency)
        return torch.cat([angle.sin(), angle.cos()], dim=-1)

    across = axis(columns)[None].expand(rows, -1, -1)
    down = axis(rows)[:, None].expand(-1, columns, -1)
    return torch.cat([across, down], dim=-1).flatten(0, 1)[None]
