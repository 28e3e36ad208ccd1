import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from runner.sampler import SAMPLE_METHODS, make_scheduler

DATA = Path(__file__).parents[1] / "data/osp12/sched"
INFO = json.loads((DATA / "info.json").read_text())


@pytest.fixture(scope="module")
def cases():
    return load_file(DATA / "cases.safetensors")


def relative(actual, expected):
    return float((actual.double() - expected.double()).abs().max() / expected.double().abs().max())


def test_the_vectors_cover_exactly_the_sample_methods():
    assert {case.split(".")[0] for case in INFO} == set(SAMPLE_METHODS)
    assert len(SAMPLE_METHODS) == 10


@pytest.mark.parametrize("case", INFO)
def test_timesteps_and_noise_level(case, cases):
    method, steps = case.split(".")
    scheduler = make_scheduler(method)
    scheduler.set_timesteps(int(steps))
    assert relative(scheduler.timesteps, cases[f"{case}.timesteps"]) <= 1e-5
    assert len(scheduler.timesteps) == INFO[case]["n_model_calls"]
    assert float(scheduler.init_noise_sigma) == pytest.approx(INFO[case]["init_noise_sigma"], rel=1e-5)
    assert scheduler.order == INFO[case]["order"]
    if f"{case}.sigmas" in cases:
        expected = cases[f"{case}.sigmas"]
        assert relative(scheduler.sigmas[: len(expected)], expected) <= 1e-5


@pytest.mark.parametrize("method", SAMPLE_METHODS)
def test_the_configuration_is_the_released_one(method):
    released = {k: v for k, v in INFO[f"{method}.7"]["config"].items() if not k.startswith("_")}
    scheduler = make_scheduler(method)
    scheduler.set_timesteps(7)  # DPMSolverSinglestep completes its configuration here
    config = scheduler.config
    assert {key: config[key] for key in released if key in config} == released


@pytest.mark.parametrize("method", SAMPLE_METHODS)
def test_a_whole_loop_gives_the_released_samples(method, cases, monkeypatch):
    get = {key.split(".")[2]: tensor for key, tensor in cases.items() if key.startswith(f"{method}.7.")}
    scheduler = make_scheduler(method)
    scheduler.set_timesteps(7)
    step = 0

    def recorded(shape, **_):
        assert "noise" in get, f"{method} drew noise"
        return get["noise"][step].reshape(shape)

    # The count of draws changed between diffusers' versions, not their use: noise i belongs to call i.
    module = sys.modules[type(scheduler).__module__]
    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", recorded)
    x = get["x0"] * scheduler.init_noise_sigma
    for step, t in enumerate(scheduler.timesteps):
        prediction = get["A"][step] * scheduler.scale_model_input(x, t) + get["B"][step]
        x = scheduler.step(prediction, t, x).prev_sample
        assert relative(x, get["samples"][step]) <= 1e-5


@pytest.mark.parametrize("method", ["DDIM", "DDPM"])
def test_latents_beyond_one_are_not_clipped(method):
    scheduler = make_scheduler(method)
    scheduler.set_timesteps(4)
    x = torch.full((1, 4, 1, 2, 2), 7.0)
    last = scheduler.step(torch.zeros_like(x), scheduler.timesteps[-1], x)
    assert float(last.pred_original_sample.min()) > 1.0


def test_an_unknown_method_is_refused_with_the_list():
    with pytest.raises(ValueError) as error:
        make_scheduler("DDMI")
    assert all(method in str(error.value) for method in ("DDMI", *SAMPLE_METHODS))


def test_each_call_makes_its_own_scheduler():
    assert make_scheduler("PNDM") is not make_scheduler("PNDM")


def test_the_names_need_no_torch():
    code = "import sys, runner.sampler as s; assert len(s.SAMPLE_METHODS) == 10; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
