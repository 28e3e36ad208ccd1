"""A pipeline of three linears and a scheduler, for what watches a generation."""

from types import SimpleNamespace

import torch
from torch import nn


class Toy(nn.Module):
    """Two linears that share an input, one that does not, called with the transformer's keywords."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, hidden_states, timestep, encoder_hidden_states=None, return_dict=True):
        return (self.out(self.q(hidden_states) + self.k(hidden_states)),)


class Scheduler:
    """Walks down given timesteps, as diffusers' schedulers do."""

    def __init__(self, timesteps):
        self.timesteps = torch.tensor(timesteps)
        self.config = SimpleNamespace(num_train_timesteps=1000)

    def step(self, model_output, timestep, sample):
        return (sample - model_output,)


def toy_pipeline(timesteps=(900.0, 500.0, 100.0)):
    return SimpleNamespace(scheduler=Scheduler(timesteps), transformer=Toy())


def generate(pipeline, x, text=None, branches=1):
    """A sampling loop in small; returns what each forward got."""
    inputs = []
    for t in pipeline.scheduler.timesteps:
        for _ in range(branches):
            inputs.append(x.clone())
            output = pipeline.transformer(hidden_states=x, timestep=t, encoder_hidden_states=text)[0]
        (x,) = pipeline.scheduler.step(output, t, x)
    return inputs
