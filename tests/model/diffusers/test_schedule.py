"""A schedule searched in recorded runs, and followed, on the families whose solver can be given one."""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import pytest
import torch
from model.diffusers.in_process import run
from model.diffusers.tiny import PIPELINES, flow, save, spelled
from safetensors.torch import load_file

from runner.bench.context import Bench
from runner.generation.generate import generate
from runner.generation.steps import Steps
from runner.hardware import open_device
from runner.metrics.video import relative_error
from runner.recording.recording import Recording
from runner.sampler import schedules

N, K = 8, 3
# Pipelines whose calls take sigmas (SD3, Flux), timesteps (LTX, PixArt) or neither (Wan); bf16 where a solver keeps it.
DTYPES = {"sd3": "bf16", "pixart": "bf16"}


def checkpoint(name: str, root: Path) -> Path:
    folder = save(name, root)
    if name == "wan":  # as it is released it has UniPC, for which none is searched
        flow(shift=3.0).save_pretrained(folder / "scheduler")
        index = json.loads((folder / "model_index.json").read_text())
        index["scheduler"] = ["diffusers", "FlowMatchEulerDiscreteScheduler"]
        (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("name", ["sd3", "flux", "wan", "ltx", "hunyuan", "pixart"])
def test_a_searched_schedule_is_found_counted_and_followed(name, tmp_path):
    options = {"dtype": DTYPES.get(name, "fp32"), "checkpoint": str(checkpoint(name, tmp_path)), **PIPELINES[name][1]}
    bench = Bench()
    folder, config = run(
        tmp_path, f"model={'sd3' if name == 'sd3' else 'diffusers'}",
        *(f"model.{key}={spelled(value)}" for key, value in options.items()), "prompts.text=[a red boat]",
        "sampler.search=recording", f"recording.steps={N}", f"sampler.num_sampling_steps={K}", "sample.compare=true",
        bench=bench,
    )  # fmt: skip
    found = json.loads((folder / "search-schedule/search.json").read_text())
    plan = {row["stage"]: row for row in json.loads((folder / "plan.json").read_text())["stages"]}
    assert 0 < found["forwards"] <= plan["search-schedule"]["forwards"]
    each = 2 if name == "wan" else 1
    coarse = 2  # nodes 0 and 5 of the coarse run; one place to perturb it at
    assert found["forwards"] == each * (coarse + 1 + K * len(found["tried"])) and len(found["perturbed"]) == 1
    assert 0.1 < found["perturbed"][0]["gain"] < 10

    written = schedules.timesteps(folder / "search-schedule" / schedules.NAME)
    recorded = found["recorded"]["timesteps"]
    assert len(written) == K and written[0] == pytest.approx(recorded[0]) and len(recorded) == N
    if found["chosen"] != "uniform":
        assert all(min(abs(t - r) for r in recorded) < 1e-3 for t in written)
    for tried in found["tried"][:-1]:
        assert tried["predicted"] > 0 and tried["error"] > 0

    part = next(iter(Recording(folder / "dump-schedule").parts("text")))
    made = load_file(folder / "sample/prompt-000/latents.safetensors")["latents"]
    (row,) = json.loads((folder / "sample/metrics.json").read_text())["prompts"]
    long = Recording(folder / "dump-schedule").final(part)
    assert row["latent_error"] == pytest.approx(relative_error(made, long), rel=1e-5) and row["latent_error"] < 1

    pipeline, seen = bench._pipeline, []
    with Steps(pipeline) as steps:
        steps.before.append(lambda _, timestep, *__: seen.append(float(timestep)))
        again = generate(
            pipeline, config, ["a red boat"], [config["seed"]], open_device("cpu"), decode=False, timesteps=written,
            steps=steps,
        ).latents  # fmt: skip
    assert torch.equal(again, made) and seen == pytest.approx(written, abs=1e-3)
    if isinstance(pipeline.scheduler, diffusers.FlowMatchEulerDiscreteScheduler):  # nothing is shifted once more
        assert pipeline.scheduler.sigmas.tolist() == pytest.approx([*(t / 1000 for t in written), 0.0], abs=1e-6)


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_recorded_jumps_are_those_of_the_solver(name, tmp_path):
    """What the search takes for x0 leads from each recorded latent to the next one."""
    from runner.sampler.search import Trajectories

    bench, folder = Bench(), save(name, tmp_path)
    options = {"dtype": "fp32", "checkpoint": str(folder), **PIPELINES[name][1]}
    ran, config = run(
        tmp_path, "model=diffusers", *(f"model.{key}={spelled(value)}" for key, value in options.items()),
        "prompts.text=[a red boat]", "sampler.search=recording", f"recording.steps={N}",
        f"sampler.num_sampling_steps={K}", "until=dump-schedule", bench=bench,
    )  # fmt: skip
    recording = Recording(ran / "dump-schedule")
    (part,) = recording.parts("trajectory")
    steps, final = list(recording.trajectory(part)), recording.final(part)
    runs = Trajectories(config["sampler"]["sample_method"], bench._pipeline.scheduler)
    runs.add(steps, final)
    shares = [step.timestep / 1000 for step in steps] + [0.0]
    for at, step in enumerate(steps):
        x0 = runs.runs[0].predictions[at].reshape(final.shape)
        now, then = shares[at], shares[at + 1]
        jumped = then / now * step.latents + (1 - then / now) * x0
        torch.testing.assert_close(jumped, steps[at + 1].latents if at + 1 < N else final, rtol=1e-4, atol=1e-4)


def test_schedule_cache_and_int8_are_put_on_each_other(tmp_path):
    """The recipe as it stands, but for sizes: what is recorded for the cache is recorded under the schedule."""
    folder, config = run(
        tmp_path, "+recipe=sd3_stacked", f"model.checkpoint={save('sd3', tmp_path)}", "model.height=32",
        "model.width=32", "prompts.text=[a red boat]", f"recording.steps={N}", "sampler.num_sampling_steps=4",
        "timing.repeats=0",
    )  # fmt: skip
    written = schedules.timesteps(folder / "search-schedule" / schedules.NAME)
    recording = Recording(folder / "dump")
    (part,) = recording.parts("calibration")
    assert [step.timestep for step in recording.trajectory(part)] == pytest.approx(written, abs=1e-3)
    assert len(list((part / "movement").iterdir())) == 3
    cache = json.loads((folder / "search-cache/search.json").read_text())
    assert cache["steps"] == 4 and cache["verified"]
    metrics = json.loads((folder / "sample/metrics.json").read_text())
    assert metrics["ledger"]["int8_matmuls"] > 0 and ("cache" in metrics) == (cache["answer"] is not None)
    (row,) = metrics["prompts"]
    made = load_file(folder / "sample/prompt-000/latents.safetensors")["latents"]
    (long,) = Recording(folder / "dump-schedule").parts("text")
    assert row["latent_error"] == pytest.approx(
        relative_error(made, Recording(folder / "dump-schedule").final(long)), rel=1e-5
    )
