"""A diffusion transformer of toy size, its calls, and the ranges of its linears' inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runner.quant import swap
from runner.quant.observers import Range

KEEP_FLOAT = ("*net.2*", "*adaln_single*", "proj_out")


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, bias=i > 0) for i in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width), nn.Dropout(0.0)])

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (2, -1)).transpose(1, 2) for f in (self.to_q, self.to_k, self.to_v))
        return self.to_out[0](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.ModuleList(
            [nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)]
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[1](self.net[0](x)))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.randn(2, width) * 0.1)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.attn, self.ff = Attention(width), FeedForward(width)

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        x = x + self.attn(self.norm(x) * (1 + self.scale_shift_table[0]) + self.scale_shift_table[1] + shift)
        return x + self.ff(self.norm(x))


class ToyDiT(nn.Module):
    """forward(hidden_states [B, L, 8], timestep [B]) -> [B, L, 8]."""

    def __init__(self, width: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.pos_embed = nn.Linear(8, width)
        self.adaln_single = nn.Sequential(nn.Linear(4, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList([Block(width) for _ in range(depth)])
        self.proj_out = nn.Linear(width, 8)

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        dtype = hidden_states.dtype
        shift = self.adaln_single((timestep[:, None] * torch.arange(1, 5) / 1000).sin().to(dtype))[:, None]
        x = self.pos_embed(hidden_states)
        for block in self.blocks:
            x = block(x, shift)
        return self.proj_out(x)


def toy_call(seed: int, dtype: torch.dtype = torch.float32, batch: int = 2, tokens: int = 24) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, tokens, 8, generator=generator)
    return {"hidden_states": x.to(dtype), "timestep": torch.full((batch,), 37.0 * (seed + 1))}


@torch.no_grad()
def input_ranges(model: nn.Module, calls: list[dict[str, Tensor]]) -> dict[str, Range]:
    """The true extremes of every linear's input."""
    seen: dict[str, list[Tensor]] = {}
    linears = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear)]

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, args: seen.setdefault(name, []).append(args[0].flatten())

    hooks = [m.register_forward_pre_hook(watch(name)) for name, m in linears]
    for call in calls:
        model(**call)
    for hook in hooks:
        hook.remove()
    every = {name: torch.cat(parts) for name, parts in seen.items()}
    return {name: Range(float(x.min()), float(x.max())) for name, x in every.items()}


def quantize(
    model: nn.Module, ranges: Mapping[str, Range], layers: Iterable[str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The export of a model with these layers in W8A8."""
    return swap.quantize(model, "w8a8", dict.fromkeys(layers, "w8a8"), ranges)
