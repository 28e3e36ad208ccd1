"""A transformer of a few blocks that says what it computed, its scheduler, and a sampling loop in small."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn


class OneStream(nn.Module):
    """Tokens in, tokens out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.computed = 0

    def forward(self, hidden_states: Tensor, shift: Tensor) -> Tensor:
        self.computed += 1
        return hidden_states + torch.tanh(self.linear(hidden_states) + shift)


class TwoStreams(nn.Module):
    """As in SD3: text and tokens, returned the other way round than they are taken; the last block drops the text."""

    def __init__(self, width: int, last: bool) -> None:
        super().__init__()
        self.linear, self.text, self.last = nn.Linear(width, width), nn.Linear(width, width), last
        self.computed = 0

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, shift: Tensor) -> tuple:
        self.computed += 1
        mixed = encoder_hidden_states.mean(1, keepdim=True)
        text = None if self.last else encoder_hidden_states + torch.tanh(self.text(encoder_hidden_states) + shift)
        return text, hidden_states + torch.tanh(self.linear(hidden_states) + mixed + shift)


class Toy(nn.Module):
    block_lists = ("blocks",)

    def __init__(self, count: int, width: int = 6, streams: int = 1) -> None:
        super().__init__()
        torch.manual_seed(count)
        self.streams = streams
        self.blocks = nn.ModuleList(
            OneStream(width) if streams == 1 else TwoStreams(width, at == count - 1) for at in range(count)
        )

    def forward(self, hidden_states: Tensor, timestep: Tensor, text: Tensor) -> tuple[Tensor]:
        x, shift = hidden_states, torch.sin(timestep / 100)
        for block in self.blocks:
            if self.streams == 1:
                x = block(x, shift) if len(x) % 2 else block(hidden_states=x, shift=shift)
            else:
                text, x = block(hidden_states=x, encoder_hidden_states=text, shift=shift)
        return (x + text.mean((1, 2), keepdim=True) if text is not None else x,)


class Scheduler:
    def __init__(self, steps: int) -> None:
        self.timesteps = torch.linspace(900, 100, steps)
        self.config = SimpleNamespace(num_train_timesteps=1000)

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor) -> tuple[Tensor]:
        return (sample - 0.2 * model_output,)


def toy(count: int = 4, steps: int = 6, streams: int = 1) -> SimpleNamespace:
    return SimpleNamespace(transformer=Toy(count, streams=streams), scheduler=Scheduler(steps))


@torch.no_grad()
def sample(pipeline: SimpleNamespace, joint: bool = True, seed: int = 0) -> Tensor:
    """Two guidance branches with texts of their own, in one batch or one after the other."""
    torch.manual_seed(seed)
    x, texts = torch.randn(1, 5, 6), torch.randn(2, 3, 6)
    for t in pipeline.scheduler.timesteps:
        if joint:
            out = pipeline.transformer(hidden_states=torch.cat([x, x]), timestep=t, text=texts)[0]
        else:
            out = torch.cat([pipeline.transformer(hidden_states=x, timestep=t, text=text[None])[0] for text in texts])
        x = pipeline.scheduler.step(out[:1] + 3 * (out[1:] - out[:1]), t, x)[0]
    return x
