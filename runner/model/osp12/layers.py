"""The parts of the Open-Sora-Plan v1.2 transformer, under the module names of the released checkpoint.

Every matrix product is an `nn.Linear` called as a module, so that a quantizer can exchange it by its dotted name, and a
block takes and returns the tokens as its first argument, so that a cache can hook it. In shapes: B batch, S tokens,
L text tokens, K keys, D = heads * head_dim.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from ..attention import Attending
from .rope import Rotary, rotate


class Attention(Attending):
    """Multi-head attention of x [B,S,D] over a context [B,K,D], or over x itself; `to_out` always has a bias."""

    def __init__(self, dim: int, heads: int, bias: bool, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias=bias)
        self.to_k = nn.Linear(dim, dim, bias=bias)
        self.to_v = nn.Linear(dim, dim, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim), nn.Dropout(dropout)])

    def forward(
        self,
        x: torch.Tensor,
        context: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        rotary: Rotary | None = None,
    ) -> torch.Tensor:
        context = x if context is None else context
        q, k, v = (
            linear(source).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear, source in ((self.to_q, x), (self.to_k, context), (self.to_v, context))
        )
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        x = self.attend(q, k, v, bias).transpose(1, 2).flatten(2)
        for layer in self.to_out:
            x = layer(x)
        return x


class GELUProjection(nn.Module):
    """Linear, then GELU in its tanh form."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, inner)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """D -> 4D -> D; `net.1` is the dropout, hence `net.2` for the second linear layer."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.net = nn.Sequential(GELUProjection(dim, 4 * dim), nn.Dropout(dropout), nn.Linear(4 * dim, dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


class OSP12Block(nn.Module):
    """Self-attention and feed-forward, both modulated and gated by the timestep; between them cross-attention to the
    text, which has neither norm, gate nor rotation."""

    def __init__(self, dim: int, heads: int, bias: bool, affine: bool, eps: float, dropout: float) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.randn(6, dim) / dim**0.5)
        self.norm1 = nn.LayerNorm(dim, eps=eps, elementwise_affine=affine)
        self.attn1 = Attention(dim, heads, bias, dropout)
        self.attn2 = Attention(dim, heads, bias, dropout)
        self.norm2 = nn.LayerNorm(dim, eps=eps, elementwise_affine=affine)
        self.ff = FeedForward(dim, dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_bias: torch.Tensor | None,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_bias: torch.Tensor | None,
        modulation: torch.Tensor,
        rotary: Rotary,
    ) -> torch.Tensor:
        """Tokens [B,S,D] -> [B,S,D]. Text [B,L,D]; modulation [B,6,D]; biases [B,1,1,K] on the logits, or None."""
        x = hidden_states
        shift, scale, gate, ff_shift, ff_scale, ff_gate = (self.scale_shift_table + modulation).chunk(6, dim=1)
        x = x + gate * self.attn1(self.norm1(x) * (1 + scale) + shift, bias=attention_bias, rotary=rotary)
        x = x + self.attn2(x, encoder_hidden_states, bias=encoder_attention_bias)
        return x + ff_gate * self.ff(self.norm2(x) * (1 + ff_scale) + ff_shift)


class PatchEmbed(nn.Module):
    """Latent video [B,C,T,H,W] -> tokens [B, T * H/p * W/p, D], each frame on its own."""

    def __init__(self, channels: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        batch = latents.shape[0]
        x = self.proj(latents.transpose(1, 2).flatten(0, 1))
        return x.flatten(2).transpose(1, 2).reshape(batch, -1, x.shape[1])


class TimestepEmbedding(nn.Module):
    """Timesteps [B] -> [B,D]: 256 sinusoids, cosines first, with angles in float32 whatever the model's dtype."""

    def __init__(self, dim: int, channels: int = 256) -> None:
        super().__init__()
        self.channels = channels
        self.linear_1 = nn.Linear(channels, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, timestep: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        half = self.channels // 2
        exponent = torch.arange(half, dtype=torch.float32, device=timestep.device) / half
        angle = timestep.float()[:, None] * torch.exp(-math.log(10000) * exponent)
        sinusoids = torch.cat([angle.cos(), angle.sin()], dim=-1).to(dtype)
        return self.linear_2(F.silu(self.linear_1(sinusoids)))


class AdaLayerNormSingle(nn.Module):
    """Timesteps [B] -> their embedding [B,D] and the modulation [B,6,D] that all blocks share."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.emb = nn.ModuleDict({"timestep_embedder": TimestepEmbedding(dim)})
        self.linear = nn.Linear(dim, 6 * dim)

    def forward(self, timestep: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        embedded = self.emb["timestep_embedder"](timestep, dtype)
        return embedded, self.linear(F.silu(embedded)).unflatten(-1, (6, -1))


class CaptionProjection(nn.Module):
    """Text embeddings [..., channels] -> [..., D]."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(channels, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear_2(F.gelu(self.linear_1(x), approximate="tanh"))
