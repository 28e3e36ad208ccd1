"""The time of each block, by a clock that the test moves."""

from types import SimpleNamespace

import torch
from torch import nn

from runner.generation.block_times import BlockTimes
from runner.generation.steps import Steps


class Ticking(nn.Module):
    """A block that takes as long as it says."""

    def __init__(self, clock: list[float], seconds: float) -> None:
        super().__init__()
        self.clock, self.seconds = clock, seconds

    def forward(self, x):
        self.clock[0] += self.seconds
        return x


class Model(nn.Module):
    block_lists = ("blocks",)

    def __init__(self, clock: list[float]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Ticking(clock, seconds) for seconds in (1.0, 3.0))
        self.clock = clock

    def forward(self, x, timestep):
        self.clock[0] += 0.5
        for block in self.blocks:
            x = block(x)
        return x


class Scheduler:
    timesteps = torch.linspace(900, 0, 20)
    config = SimpleNamespace(num_train_timesteps=1000)

    def step(self, model_output, timestep, sample):
        return (sample,)


def test_blocks_and_steps_are_timed_with_all_their_calls():
    clock = [0.0]
    pipeline = SimpleNamespace(transformer=Model(clock), scheduler=Scheduler())
    times = BlockTimes(pipeline, SimpleNamespace(clock=lambda: clock[0]), 20)
    for _ in range(2):
        with Steps(pipeline) as steps, times.watch(steps):
            for t in pipeline.scheduler.timesteps:
                for _ in range(2):
                    pipeline.transformer(torch.zeros(1), timestep=t)
                pipeline.scheduler.step(torch.zeros(1), t, torch.zeros(1))
    assert times.summary() == {
        "block_seconds": [2.0, 6.0], "step_seconds": 9.0, "blocks": ["blocks.0", "blocks.1"], "steps_timed": 20,
    }  # fmt: skip
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in pipeline.transformer.modules())
