"""Where a generation stands."""

import inspect

import pytest
import torch
from cache.toy_blocks import toy

from runner.generation.steps import Steps
from runner.sampler import make_scheduler


def test_a_timestep_off_the_schedule_is_an_error():
    pipeline = toy()
    with pytest.raises(RuntimeError, match="step 0: the transformer got timestep 700"), Steps(pipeline):
        pipeline.transformer(torch.zeros(1, 5, 6), torch.tensor(700.0), torch.zeros(1, 3, 6))


def test_a_pipeline_still_sees_what_the_scheduler_takes():
    """Pipelines read the signature of `step` to learn whether it takes a generator."""
    pipeline = toy()
    pipeline.scheduler = make_scheduler("EulerAncestralDiscrete")
    with Steps(pipeline):
        assert "generator" in inspect.signature(pipeline.scheduler.step).parameters


def test_the_scheduler_gets_its_own_step_back():
    pipeline = toy()
    with Steps(pipeline):
        assert "step" in vars(pipeline.scheduler)
    assert "step" not in vars(pipeline.scheduler)
