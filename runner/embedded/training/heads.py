"""What a transformer's tokens are asked while it is trained, beside the noise; dropped when weights are exported.

The loss of the noise alone leaves much to be found by chance. Rotary embedding says how far apart two tokens are, never
where they are, and a caption such as "moving left" is about where: after 2000 iterations a linear probe told 25 % of
five frames. With hidden words it had not found by then what shapes and motions mean. And shapes are a small part of the
latents' power; what color they have should not matter to where their edges run.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from runner.embedded import world

# Which word of "a red circle moving left" each token belongs to: 0 shape, 1 color, 2 motion (and the end, where the
# motion is one word), 3 what is never hidden.
WORDS = torch.tensor([3, 1, 0, 2, 2, 3, 3, 3])
# How many words of each there are, and one more, the last, for hidden.
KINDS = tuple(len(kind) + 1 for kind in (world.SHAPES, world.COLORS, world.MOTIONS))
CELLS = 16  # of 4x4 pixels, in a token of 2x2 latents
CHUNK = 17  # frames whose first is a latent frame by itself, each four others one


class Head(nn.Linear):
    """A linear layer on the tokens [B, tokens, D] that leave a block."""

    def __init__(self, width: int, answers: int, block: nn.Module) -> None:
        super().__init__(width, answers)
        nn.init.zeros_(self.weight)
        block.register_forward_hook(self._keep)
        self._tokens: Tensor | None = None

    def _keep(self, block: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        tokens = output[-1] if isinstance(output, tuple) else output  # of two streams the picture's is the last
        self._tokens = tokens if self.training else None

    def answers(self) -> Tensor:
        """Of the last call's tokens, float32 [B, tokens, answers]."""
        assert self._tokens is not None
        return self(self._tokens).float()


class Asked(Head):
    """Asks for several things, each one of so many: a token's place along axes, the words of the caption."""

    def __init__(self, width: int, sizes: tuple[int, ...], block: nn.Module) -> None:
        super().__init__(width, sum(sizes), block)
        self.sizes = sizes

    def loss(self, wanted: Tensor) -> Tensor:
        """Cross entropy, summed over the things; `wanted` broadcasts to [B, tokens, things]."""
        answers = self.answers()
        wanted = wanted.to(answers.device).expand(*answers.shape[:2], -1).flatten(0, 1)
        each = zip(answers.flatten(0, 1).split(self.sizes, dim=-1), wanted.unbind(-1), strict=True)
        return torch.stack([nn.functional.cross_entropy(*pair) for pair in each]).sum()


class Drawn(Head):
    """Asks which of its cells the shape covers."""

    def __init__(self, width: int, block: nn.Module) -> None:
        super().__init__(width, CELLS, block)

    def loss(self, covered: Tensor) -> Tensor:
        """Binary cross entropy with shares in 255ths, uint8 [B, tokens, CELLS] as `cells` gives them."""
        answers = self.answers()
        return nn.functional.binary_cross_entropy_with_logits(answers, covered.to(answers.device).float() / 255)


def places(*grid: int) -> Tensor:
    """Where each token of a grid is along its axes, [1, tokens, axes]."""
    return torch.cartesian_prod(*map(torch.arange, grid))[None]


def words_said(split: str, motions: tuple[str, ...] = world.MOTIONS) -> Tensor:
    """Which shape, color and motion each combination of a split has, [N, 3]."""
    kinds, found = (world.SHAPES, world.COLORS, motions), world.combinations(split, motions)
    return torch.tensor([[kind.index(word) for kind, word in zip(kinds, each, strict=True)] for each in found])


def cells(scene: world.Scene, frames: int = world.FRAMES) -> Tensor:
    """The share that a scene's shape covers of each cell of each token, in 255ths, uint8 [tokens, CELLS]."""
    time = np.linspace(0, 1, frames, dtype=np.float32)
    path = (a + (b - a) * time for a, b in (*zip(scene.start, scene.end, strict=True), scene.radius))
    alpha = torch.from_numpy(world.coverage(scene.attributes.shape, *path))
    latent = [torch.cat([chunk[:1], chunk[1:].unflatten(0, (-1, 4)).mean(1)]) for chunk in alpha.split(CHUNK)]
    pooled = nn.functional.avg_pool2d(torch.cat(latent), 4)
    tokens = pooled.unflatten(1, (-1, 4)).unflatten(3, (-1, 4)).permute(0, 1, 3, 2, 4)
    return (tokens.reshape(-1, CELLS) * 255).round().to(torch.uint8)
