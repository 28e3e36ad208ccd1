"""Trials on a small pipeline: replayed prefixes are exact, forwards are counted, and the stage's two searches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from desk.conftest import front_door
from hydra.core.config_store import ConfigStore

from runner.cache import probes, search
from runner.cache.policy import Policy, Rectangle
from runner.cache.predict import local_errors
from runner.cache.speed import Times
from runner.cache.trial import Case, Trials
from runner.generation.steps import Steps
from runner.hardware import open_device
from runner.model import load_pipeline
from runner.recording.movement import Boundaries, Movement

STEPS, NOTHING = 8, Policy((None,) * 8)
ARGUMENTS = ("+recipe=osp12_float", "model.dtype=fp32", f"sampler.num_sampling_steps={STEPS}")


@pytest.fixture(scope="module", params=["joint", "separate"])
def trials(request, tiny_checkpoint: Path) -> Trials:
    config = front_door(
        *ARGUMENTS, f"model.checkpoint={tiny_checkpoint}", f"sampler.guidance_batch={request.param}"
    ).config
    ConfigStore.instance().repo.pop("recipe", None)
    pipeline = load_pipeline(config["model"], config["sampler"]["sample_method"], "cpu")
    return Trials(pipeline, config, open_device("cpu"))


@pytest.fixture(scope="module")
def case(trials: Trials) -> Case:
    done = trials.run(Case("a red boat", 5, torch.empty(0), {}), NOTHING, 0, keep=True)
    return Case("a red boat", 5, done.latents, done.predictions)


def calls(trials: Trials) -> list[int]:
    counted = [0]
    trials.pipeline.transformer.proj_out.register_forward_hook(lambda *_: counted.__setitem__(0, counted[0] + 1))
    return counted


@pytest.mark.parametrize("computed_from", [0, 3, STEPS])
def test_a_replayed_prefix_changes_no_bit(trials, case, computed_from):
    counted, before = calls(trials), trials.forwards
    done = trials.run(case, NOTHING, computed_from)
    branches = 2 if trials.config["sampler"]["guidance_batch"] == "separate" else 1
    assert torch.equal(done.latents, case.final)
    assert done.forwards == trials.forwards - before == STEPS - computed_from == counted[0] / branches
    assert set(done.seconds) == set(range(computed_from + 1, STEPS))
    assert "forward" not in vars(trials.pipeline.transformer)


def test_reuse_from_a_replayed_prefix_is_that_of_the_whole_run(trials, case):
    policy = Rectangle(4, 2, 0, 1).policy(STEPS, 2)
    whole, rest = trials.run(case, policy, 0), trials.run(case, policy, search.first_kept(policy))
    assert search.first_kept(policy) == 4 and rest.forwards == 4
    assert torch.equal(whole.latents, rest.latents) and not torch.equal(whole.latents, case.final)


def test_single_steps_are_computed_where_the_rest_is_recorded(trials, case):
    policy = Policy(tuple((0, 1) if 2 < t <= 5 else None for t in range(STEPS)))
    done = trials.run(case, policy, 2, computed=(2, 5), keep=True)
    assert done.forwards == 2 and set(done.seconds) == {5}
    assert set(done.predictions) == {2, 5}
    assert torch.equal(done.predictions[2], case.predictions[2])
    assert not torch.equal(done.predictions[5], case.predictions[5])


def test_frames_on_request(trials, case):
    assert trials.run(case, NOTHING, STEPS, decode=True).frames.shape == (1, 9, 32, 48, 3)
    assert trials.run(case, NOTHING, STEPS).frames.numel() == 0


def test_probes_measure_what_a_reuse_does(trials, case, tmp_path):
    with Steps(trials.pipeline) as steps, Boundaries(trials.pipeline, steps, 4, tmp_path):
        from runner.generation.generate import generate

        generate(trials.pipeline, trials.config, [case.prompt], [case.seed], trials.hardware, decode=False)
    movement, before = Movement.read(tmp_path), trials.forwards
    predicted = probes.predict(trials, [case], [movement], Times(1.0, (0.4, 0.4)))
    spent = trials.forwards - before
    assert len(predicted.probes) > 3 and all(probe.gain > 0 for probe in predicted.probes) and spent <= 4 * STEPS
    assert (predicted.transfers.alone > 0).all() and predicted.transfers.together[-1] == 1
    # What the block probes measured, all blocks reused at once, is what is predicted of that prompt.
    step = STEPS - 1
    done = trials.run(case, Policy((*[None] * step, (0, 2))), step - 1, computed=(step - 1, step), keep=True)
    found = search.relative_error(done.predictions[step], case.predictions[step])
    assert local_errors([movement], predicted.transfers)[step, 0, 0, 2] == pytest.approx(found)
    prediction = predicted.prediction
    policy = Rectangle(2, 2, 0, 2).policy(STEPS, 2)
    error = search.relative_error(trials.run(case, policy, 2).latents, case.final)
    assert error / 6 < prediction.damage(policy) < 6 * error
