"""show=estimate: the time of a run, from two steps of it."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from runner import worker
from runner.__main__ import door
from runner.desk.plan.graph import PlannedStage
from runner.desk.run import launch, probe
from runner.desk.run.probe import Probe
from runner.sampler.methods import SAMPLE_METHODS

FOUND = Probe(forward=2.0, decode=10.0, load=100.0, memory=5, measured="today")
ROW = PlannedStage("dump", "dump", "key", "run", "not stored yet", forwards=30, clips=3)


@pytest.fixture
def launched(monkeypatch, tmp_path, capfd) -> list[Path]:
    """The folders that a worker in this process was started on."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found: list[Path] = []

    def here(run: Path, config: object) -> None:
        found.append(run)
        if worker.main([run]):
            raise launch.RunFailed("stage sample", "as planned", run)

    monkeypatch.setattr(launch, "launch", here)
    return found


def test_time_is_what_the_plan_counts_times_what_was_measured():
    rows = [
        ROW,
        replace(ROW, stage="calibrate", forwards=0, clips=0),
        replace(ROW, stage="quantize", forwards=4, clips=0),
        replace(ROW, stage="sample", action="reuse"),
    ]
    assert FOUND.seconds(rows) == {"dump": 190.0, "quantize": 8.0}
    assert FOUND.seconds(rows[2:]) == {"quantize": 108.0}


def test_separate_branches_are_two_forwards_a_step():
    generation = {"step_seconds": {"median": 6.0}, "decode_seconds": {"median": 4.0}}
    measured = {"generation": generation, "seconds": 100.0, "peak_memory_bytes": 5}
    sampler = {"num_sampling_steps": 2, "sample_method": "DDIM", "guidance_scale": 4.0, "guidance_batch": "joint"}
    config = {"sampler": sampler, "model": {"batch_size": 3}}
    joint = probe._read(measured, config)
    separate = probe._read(measured, {**config, "sampler": {**sampler, "guidance_batch": "separate"}})
    assert (joint["forward"], joint["decode"], joint["load"]) == (6.0, 12.0, 76.0)
    assert (separate["forward"], separate["decode"], separate["load"]) == (3.0, 12.0, 76.0)


def test_an_estimate_runs_two_steps_and_leaves_a_measurement_alone(launched, tiny_checkpoint, capfd):
    arguments = ["+recipe=osp12_w8a8", f"model.checkpoint={tiny_checkpoint}", "show=estimate"]
    assert door(arguments) == 0
    out = capfd.readouterr().out
    assert " time " in out and "by a probe of the float model on this machine" in out
    (run,) = launched
    assert not run.exists()
    assert not list(Path("outputs").rglob("run.json")) and not list(Path("outputs/.store").glob("sample-*"))
    (file,) = Path("outputs/.store/measurements").glob("*/probe-*.json")
    measured = json.loads(file.read_text())
    assert measured["forward"] > 0 and measured["decode"] > 0 and measured["memory"] > 0

    file.write_text(json.dumps({**measured, "forward": 3600.0}))
    assert door([*arguments, "quant.observer=mse", "seed=5", "sampler.num_sampling_steps=4"]) == 0
    assert len(launched) == 1  # nothing that the forward depends on has changed
    assert "forward 1 h 00 min" in capfd.readouterr().out
    assert door([*arguments, "model.height=64"]) == 0
    assert len(launched) == 2


def test_a_probe_that_fails_says_why_and_keeps_the_traceback(launched, tiny_checkpoint, capfd, monkeypatch):
    from runner.stages import sample

    def fail(*_):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(sample, "run", fail)
    assert door([f"model.checkpoint={tiny_checkpoint}", "show=estimate"]) == 1
    (run,) = launched
    assert "failed: stage sample" in capfd.readouterr().err
    assert "no such kernel" in (run / "traceback.txt").read_text()
    assert not list(Path("outputs/.store").rglob("probe-*"))


@pytest.mark.slow
@pytest.mark.parametrize("method", SAMPLE_METHODS)
def test_every_method_can_be_probed(launched, tiny_checkpoint, method):
    solver = [f"sampler.sample_method={method}", "sampler.num_sampling_steps=4"]
    assert door([f"model.checkpoint={tiny_checkpoint}", *solver, "show=estimate"]) == 0
