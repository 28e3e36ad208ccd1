"""The recording: histograms, statistics by step, calls."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from support.toy_pipeline import generate, toy_pipeline

from runner.generation.steps import Steps
from runner.recording.recording import Calls, Recording, Trajectory
from runner.recording.statistics import BINS, HISTOGRAM_EDGES, LinearStatistics, _extremes, histogram


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_histogram_counts_as_torch_does(dtype):
    # A seed, because float16 rounds one value in a million to zero, which the two count on different sides.
    torch.manual_seed(0)
    values = (torch.randn(3, 5000) * torch.tensor([[0.01], [1.0], [50.0]])).to(dtype)
    counts = histogram(values)
    assert counts.shape == (3, BINS)
    for row, wanted in zip(counts, values, strict=True):
        # A negative value that is an edge falls on the side away from zero here, on the other one there.
        expected, _ = torch.histogram(-wanted.double(), -HISTOGRAM_EDGES.flip(0))
        positive = torch.histogram(wanted.double(), HISTOGRAM_EDGES)[0]
        assert torch.equal(row[BINS // 2 :].double(), positive[BINS // 2 :])
        assert torch.equal(row[: BINS // 2].double(), expected.flip(0)[: BINS // 2])


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=50))
@settings(max_examples=100, deadline=None)
def test_histogram_puts_each_value_between_its_edges(values):
    x = torch.tensor(values, dtype=torch.float32)
    for value, counts in zip(x, histogram(x[:, None]), strict=True):
        low, high = (float(HISTOGRAM_EDGES[int(counts.argmax()) + i]) for i in (0, 1))
        assert low <= max(min(float(value), float(HISTOGRAM_EDGES[-1])), float(HISTOGRAM_EDGES[0])) <= high


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@given(st.lists(st.floats(-60000, 60000, width=16), min_size=1, max_size=12), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_extremes_are_the_true_ones_whatever_the_signs(dtype, values, channels):
    x = torch.tensor(values, dtype=dtype)[None, :, None] * torch.tensor([1.0, -0.5, 0.0], dtype=dtype)[:channels]
    low, high, absmax = _extremes(torch.cat([x, x.abs(), -x.abs() - 1]))
    for row, each in enumerate((x[0], x[0].abs(), -x[0].abs() - 1)):
        assert (low[row], high[row]) == (each.min(), each.max())
        assert torch.equal(absmax[row], each.abs().amax(0))


def test_extremes_do_not_lose_what_is_no_number():
    low, high, absmax = _extremes(torch.tensor([[[1.0], [float("nan")]], [[2.0], [float("inf")]]]))
    assert high.isnan().tolist() == [True, False] and absmax.isnan().flatten().tolist() == [True, False]
    assert (float(low[1]), float(high[1])) == (2.0, float("inf"))


def test_statistics_hold_what_each_linear_got_at_each_step(tmp_path):
    pipeline = toy_pipeline()
    x = torch.randn(2, 5, 6)
    with Steps(pipeline) as steps, LinearStatistics(pipeline.transformer, steps) as statistics, torch.no_grad():
        inputs = generate(pipeline, x)
    (tmp_path / "prompt-000").mkdir()
    statistics.save(tmp_path / "prompt-000")
    (tmp_path / "prompts.json").write_text('[{"folder": "prompt-000", "index": 0, "roles": ["calibration"]}]')
    layers = Recording(tmp_path).statistics()
    assert list(layers) == ["q", "k", "out"]
    assert layers["q"] is layers["k"]  # one record of one tensor
    flat = torch.stack([x.reshape(-1, 6) for x in inputs])
    assert torch.equal(layers["q"].minimum, flat.amin((1, 2))[None])
    assert torch.equal(layers["q"].maximum, flat.amax((1, 2))[None])
    assert torch.equal(layers["q"].absmax, flat.abs().amax(1)[None])
    assert torch.equal(layers["q"].histogram[0].int(), histogram(flat.flatten(1)).int())
    assert torch.equal(layers["q"].at(1).minimum, layers["q"].minimum[:, 1:2])


@pytest.mark.parametrize("small", [0, 1 << 30])
def test_guidance_branches_of_one_step_are_one_row(tmp_path, small, monkeypatch):
    monkeypatch.setattr(LinearStatistics, "SMALL", small)
    pipeline = toy_pipeline()
    with Steps(pipeline) as steps, LinearStatistics(pipeline.transformer, steps) as statistics, torch.no_grad():
        for t in pipeline.scheduler.timesteps:
            low, high = torch.full((4, 6), -3.0), torch.full((4, 6), 7.0)
            pipeline.transformer(hidden_states=low, timestep=t)
            pipeline.transformer(hidden_states=high, timestep=t)
            pipeline.scheduler.step(low, t, low)
    statistics.save(tmp_path)
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "statistics.safetensors")
    assert saved["q.minimum"].tolist() == [-3.0] * 3 and saved["q.maximum"].tolist() == [7.0] * 3
    assert saved["q.histogram"].sum(1).tolist() == [48] * 3


def test_statistics_leave_no_hooks_behind():
    pipeline = toy_pipeline()
    with Steps(pipeline) as steps, LinearStatistics(pipeline.transformer, steps):
        pass
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in pipeline.transformer.modules())
    assert "step" not in vars(pipeline.scheduler)


def test_calls_come_back_as_they_were_made(tmp_path):
    pipeline = toy_pipeline()
    text = torch.randn(1, 3, 6)
    with Steps(pipeline) as steps, Calls(pipeline.transformer, steps, tmp_path / "prompt-000"), torch.no_grad():
        inputs = generate(pipeline, torch.randn(2, 5, 6), text, branches=2)
    (tmp_path / "prompts.json").write_text('[{"folder": "prompt-000", "index": 0, "roles": ["calibration"]}]')
    recording = Recording(tmp_path)
    calls = list(recording.calls(recording.parts("calibration")[0]))
    assert len(calls) == 6
    for call, x in zip(calls, inputs, strict=True):
        assert torch.equal(call["hidden_states"], x) and torch.equal(call["encoder_hidden_states"], text)
    assert [float(c["timestep"]) for c in calls] == [900, 900, 500, 500, 100, 100]


def test_batches_over_different_steps_are_refused(tmp_path):
    for number, steps in enumerate((2, 3)):
        folder = tmp_path / f"calib-{number}"
        folder.mkdir()
        row = torch.zeros(steps, 1)
        save_file({"q.minimum": row[:, 0].clone()}, folder / "statistics.safetensors")
        (folder / "statistics.json").write_text('{"q": "q"}')
    entries = [{"folder": f"calib-{n}", "index": n, "roles": ["calibration"]} for n in range(2)]
    (tmp_path / "prompts.json").write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=r"\[2, 3\] steps"):
        Recording(tmp_path).statistics()


def test_every_step_of_the_solver_comes_back_bit_for_bit(tmp_path):
    pipeline = toy_pipeline()
    wanted = []
    with Steps(pipeline) as steps, torch.no_grad():
        Trajectory(steps, tmp_path / "prompt-000")
        steps.before.append(lambda *seen: wanted.append((seen[2].clone(), seen[3].clone())))
        generate(pipeline, torch.randn(1, 5, 6), branches=2)
    (tmp_path / "prompts.json").write_text('[{"folder": "prompt-000", "index": 0, "roles": ["verification"]}]')
    recording = Recording(tmp_path)
    got = list(recording.trajectory(recording.parts("verification")[0]))
    assert [step.timestep for step in got] == [900.0, 500.0, 100.0] and [step.position for step in got] == [0, 1, 2]
    for step, (latents, prediction) in zip(got, wanted, strict=True):
        assert torch.equal(step.latents, latents) and torch.equal(step.prediction, prediction)
    for step, following in zip(got, got[1:], strict=False):
        assert torch.equal(step.latents - step.prediction, following.latents)
