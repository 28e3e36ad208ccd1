"""A recording of more than a thousand evaluations, as Heun and KDPM2 make of over 500 steps."""

import random

import pytest
import torch
from safetensors.torch import save_file
from support.toy_pipeline import generate, toy_pipeline

from runner.generation.steps import Steps
from runner.recording.movement import Movement
from runner.recording.recording import Calls, Recording, Trajectory
from runner.recording.step_files import step_file, step_files

STEPS = 1003


def test_names_below_a_thousand_are_what_they_were(tmp_path):
    assert [step_file(tmp_path, position).name for position in (0, 7, 999, 1000)] == [
        *("step-000.safetensors", "step-007.safetensors", "step-999.safetensors", "step-1000.safetensors")
    ]
    assert step_file(tmp_path, 7, 1).name == "step-007-1.safetensors"


def test_files_come_by_number_whatever_the_order_in_which_they_lie(tmp_path):
    wanted = [(position, branch) for position in (0, 1, 99, 100, 101, 999, 1000, 1001, 10000) for branch in (0, 1, 10)]
    for each in random.Random(3).sample(wanted, len(wanted)):
        step_file(tmp_path, *each).touch()
    (tmp_path / "step-without-a-number.safetensors").touch()
    found = step_files(tmp_path)
    assert [(file.position, file.branch) for file in found] == wanted
    assert [file.path for file in found] == [step_file(tmp_path, *each) for each in wanted]
    assert step_files(tmp_path / "nowhere") == []


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A recording of two branches, and its part."""
    folder = tmp_path_factory.mktemp("recording")
    part = folder / "prompt-000"
    torch.manual_seed(0)
    pipeline = toy_pipeline([float(STEPS - step) for step in range(STEPS)])
    pipeline.transformer.out.weight.data *= 1e-3  # so that a thousand steps lead to no infinity
    x, text = torch.randn(1, 1, 6), torch.randn(1, 2, 6)
    with Steps(pipeline) as steps, Calls(pipeline.transformer, steps, part), torch.no_grad():
        Trajectory(steps, part)
        inputs = generate(pipeline, x, text, branches=2)
    (folder / "prompts.json").write_text('[{"folder": "prompt-000", "index": 0, "roles": ["calibration"]}]')
    return Recording(folder), part, inputs, text


def test_calls_of_a_thousand_steps_come_back_as_they_were_made(recorded):
    recording, part, inputs, text = recorded
    calls = list(recording.calls(part))
    assert [float(call["timestep"]) for call in calls] == [STEPS - step for step in range(STEPS) for _ in range(2)]
    for call, x in zip(calls, inputs, strict=True):
        assert torch.equal(call["hidden_states"], x) and torch.equal(call["encoder_hidden_states"], text)


def test_the_trajectory_and_its_predictions_come_in_order(recorded):
    recording, part, inputs, _ = recorded
    steps = list(recording.trajectory(part))
    assert [step.position for step in steps] == list(range(STEPS))
    assert [step.timestep for step in steps] == [STEPS - step for step in range(STEPS)]
    predictions = recording.predictions(part)
    assert list(predictions) == list(range(STEPS))
    assert all(torch.equal(predictions[step.position], step.prediction) for step in steps)


def test_movement_is_read_step_by_step(tmp_path):
    (tmp_path / "movement").mkdir()
    for step in range(1, STEPS):
        tensors = {"increments": torch.full((1, 1, 1, 2, 2), float(step)), "weights": torch.tensor([float(step)])}
        save_file(tensors, step_file(tmp_path / "movement", step))
    movement = Movement.read(tmp_path)
    assert [float(weight) for weight in movement.weights[1:]] == list(range(1, STEPS))
    assert [float(gram[0, 0, 0, 0, 0]) for gram in movement.gram[1:]] == list(range(1, STEPS))
