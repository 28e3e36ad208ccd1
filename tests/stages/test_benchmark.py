"""A benchmark that is cut off goes on with the batches that it has timed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from stages.cut_off import Again, calls
from support.finished import run

from runner.model.opensora12 import OpenSora12Transformer
from runner.store.artifacts import Store

WARM_UP = BATCH = 2  # calls


@pytest.fixture(scope="module")
def done(tiny_opensora12: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    at = ["+recipe=opensora12_benchmark", f"model.checkpoint={tiny_opensora12}", "timing.warmup=1", "timing.repeats=2"]
    return run(tmp_path_factory.mktemp("outputs"), *at, "prompts.text=[a boat, a tree]")


def figures(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "measurements" / "benchmark.json").read_text())["performance_info"]
    assert found["step_seconds"]["n"] == 2 * 2 * 2  # prompts, repeats, steps
    seconds = found["Avg single prompt infer time"] + found["save_seconds"]
    assert found["Avg infer time"] == pytest.approx(2 * seconds) and found["peak_memory_bytes"] > 0
    return found


def test_what_was_timed_before_a_crash_is_not_timed_again(done: Path, tmp_path: Path) -> None:
    again = Again(done, tmp_path, "benchmark")
    assert again.planned == WARM_UP + 4 * BATCH and figures(done)["sessions"] == 1
    with calls(OpenSora12Transformer, at_most=WARM_UP + 2 * BATCH + 1) as made:
        assert not again.follow()
    timed = {file: file.read_bytes() for file in again.store.root.glob("drafts/*/trials/*/trial.json")}
    assert len(made) == WARM_UP + 2 * BATCH + 1 and len(timed) == 2
    with calls(OpenSora12Transformer) as made, pytest.MonkeyPatch.context() as patched:
        patched.setattr(Store, "commit", lambda *_: pytest.fail("cut off before the commit", pytrace=False))
        with pytest.raises(pytest.fail.Exception):
            again.follow()
    assert len(made) == WARM_UP + 2 * BATCH, "two batches were left"
    assert all(file.read_bytes() == before for file, before in timed.items())
    with calls(OpenSora12Transformer) as made:
        assert again.follow()
    assert not made and again.is_as_undisturbed()
    assert figures(again.run)["sessions"] == 2


def test_what_another_machine_has_timed_is_timed_again(done: Path, tmp_path: Path, monkeypatch) -> None:
    again = Again(done, tmp_path, "benchmark")
    with monkeypatch.context() as patched, calls(OpenSora12Transformer, at_most=WARM_UP + 3 * BATCH):
        patched.setattr("runner.store.machine.identity", lambda: "another")
        assert not again.follow()
    with calls(OpenSora12Transformer) as made:
        assert again.follow()
    assert len(made) == again.planned and again.is_as_undisturbed() and figures(again.run)["sessions"] == 1
