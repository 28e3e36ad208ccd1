"""Reuse of the pairs of spatial and temporal blocks, also where frames are given and clips go on from one another."""

from __future__ import annotations

import pytest
import torch
from cache.by_hooks import attributes, by_hooks
from desk.conftest import front_door
from hydra.core.config_store import ConfigStore

from runner.cache.policy import Policy, Rectangle
from runner.cache.reuse import Reuse
from runner.generation.generate import generate
from runner.generation.steps import Steps
from runner.hardware import open_device
from runner.model import blocks, load_pipeline
from runner.recording.movement import Boundaries, Movement

STEPS = 4


@pytest.fixture(params=["text", "first frame", "two clips"])
def made(request, tiny_opensora12, reference_image):
    """Latents of one clip, under whatever `around(pipeline, steps)` puts around its transformer."""
    arguments = {
        "text": (),
        "first frame": (f"prompts.references={reference_image}", "prompts.mask_strategy='0'"),
        "two clips": ("model.loop=2", "model.num_frames=34", "sampler.guidance_batch=separate"),
    }[request.param]
    config = front_door(
        "+recipe=opensora12_sample", f"model.checkpoint={tiny_opensora12}", "model.dtype=fp32",
        f"sampler.num_sampling_steps={STEPS}", *arguments,
    ).config  # fmt: skip
    ConfigStore.instance().repo.pop("recipe", None)
    pipeline = load_pipeline(config["model"], config["sampler"]["sample_method"], "cpu")

    def latents(around=None):
        with Steps(pipeline) as steps:
            if around is None:
                return run(steps)
            with around(pipeline, steps):
                return run(steps)

    def run(steps):
        text = config["prompts"]["text"][:1]
        return generate(pipeline, config, text, [5], open_device("cpu"), decode=False, steps=steps).latents

    return pipeline, config["model"]["loop"], latents


@pytest.mark.parametrize("rectangle", [Rectangle(1, 2, 1, 2), Rectangle(0, 3, 0, 3)])
def test_pairs_of_blocks_are_reused_and_nothing_stays(made, rectangle):
    pipeline, loops, latents = made
    names = blocks(pipeline)
    assert names[:3] == ["spatial_blocks.0", "temporal_blocks.0", "spatial_blocks.1"]
    policy = Policy(rectangle.policy(STEPS, len(names)).ranges * loops)
    plain = latents()
    before = attributes(pipeline.transformer)
    got = latents(lambda p, steps: Reuse(p.transformer, steps, policy))
    assert torch.equal(got, latents(lambda p, steps: by_hooks(p, ("hidden_states",), policy, steps)))
    assert not torch.equal(got, plain) and torch.equal(latents(), plain)
    assert attributes(pipeline.transformer) == before


def test_movement_is_recorded_of_both_branches(made, tmp_path):
    pipeline, loops, latents = made
    latents(lambda p, steps: Boundaries(p, steps, 2, tmp_path))
    movement = Movement.read(tmp_path)
    assert movement.blocks == len(blocks(pipeline)) and len(movement.gram) == STEPS * loops
    assert sorted(movement.weights[-1].tolist()) == pytest.approx([-3.0, 4.0], rel=0.01)
