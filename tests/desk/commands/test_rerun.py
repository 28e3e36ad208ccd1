"""A run made again elsewhere: from its folder alone, and what is said of the two."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from runner.__main__ import door
from runner.desk.commands import rerun
from runner.store import delivery


@pytest.fixture
def first(journal, at, capfd) -> Path:
    """A finished run."""
    assert door(["+recipe=osp12_w8a8", at, "seed=7", "quant.observer=mse"]) == 0
    (told,) = Path("outputs/osp12_w8a8").glob("*/run.json")
    capfd.readouterr()
    return told.parent


def the_rerun(output: str = "reruns") -> Path:
    return max(Path(output).glob("osp12_w8a8/*/run.json"), key=lambda path: path.stat().st_mtime_ns).parent


def test_the_same_again_elsewhere_is_equal(first, journal, capfd):
    journal.write_text("")
    assert door(["rerun", str(first)]) == 0
    assert f"results  equal: all 4 files, byte by byte, of {first.resolve()}" in capfd.readouterr().out
    second = the_rerun()
    made = [line.split()[0] for line in journal.read_text().splitlines()]
    assert made == ["worker", "dump", "calibrate", "quantize", "sample"], "nothing of the first run is reused"
    told = [json.loads((run / "run.json").read_text()) for run in (first, second)]
    assert told[1]["config"] == {**told[0]["config"], "output": str(Path("reruns").resolve())}
    assert told[1]["origin"] == {**told[0]["origin"], "output": "command line"}
    assert told[1]["command"] == ["python", "-m", "runner", "rerun", str(first)]
    verdict = json.loads((second / "rerun.json").read_text())
    assert verdict["equal"] is True and verdict["same"] == 4 and verdict["why"] == []
    page = (second / "report.html").read_text()
    assert "all 4 files are the same, byte by byte" in page and str(first.resolve()) in page
    assert door(["rerun", str(first)]) == 0
    assert "reused   dump, calibrate, quantize, sample: an earlier rerun" in capfd.readouterr().out


def test_what_is_delivered_to_folders_of_the_user_s_is_not_delivered_again():
    assert {key for key, _ in delivery.DELIVERED.values()} <= set(rerun.NOT_AGAIN)


def test_what_differs_is_named_with_what_it_was_made_of(first, monkeypatch, capfd):
    provenance = json.loads((first / "provenance.json").read_text())
    provenance["packages"]["torch"] = "1.0"
    provenance["machine"]["cores"] = 3000
    provenance["environment"].append("ONLY_THEN")
    (first / "provenance.json").write_text(json.dumps(provenance))
    (first / "sample" / "more").write_text("a file that only the first has")
    monkeypatch.setenv("WORD", " again")
    assert door(["rerun", str(first), "--output", "there"]) == 1
    out = capfd.readouterr().out
    assert "results  not equal: 5 of 5 files" in out and "         dump/made\n" in out
    assert "         sample/more (only the first)\n" in out
    assert "packages.torch 1.0 → 2" in out and "machine.cores 3000 → " in out
    assert "environment: unset in the second: ONLY_THEN" in out and "environment: set only in the second: WORD" in out
    assert json.loads((the_rerun("there") / "rerun.json").read_text())["missing"] == ["sample/more"]
    assert "1 of 5" not in out and "5 of 5 files are not the same" in (the_rerun("there") / "report.html").read_text()


def test_weights_that_lie_elsewhere_and_are_others(first, tiny_checkpoint, tmp_path, capfd):
    moved = tmp_path / "moved"
    shutil.copytree(tiny_checkpoint.parent, moved)
    there = f"model.checkpoint={moved / tiny_checkpoint.name}"
    (moved / tiny_checkpoint.name / "defaults.yaml").write_text("timing: {repeats: 9}")
    assert door(["rerun", str(first), there]) == 0
    config = json.loads((the_rerun() / "run.json").read_text())["config"]
    assert config["timing"]["repeats"] != 9, "what a checkpoint wants by now changes no run that is made again"
    assert Path(config["model"]["vae"]).is_relative_to(moved), (
        "what was beside the weights is looked for beside them again"
    )
    (moved / tiny_checkpoint.name / "diffusion_pytorch_model.safetensors").write_bytes(b"other weights")
    capfd.readouterr()
    assert door(["rerun", str(first), there, "--output", "there"]) == 0
    assert "         weights of transformer changed\n" in capfd.readouterr().out


def test_a_run_of_an_older_version_gets_the_defaults_of_newer_keys(first, capfd):
    told = json.loads((first / "run.json").read_text())
    del told["config"]["timing"], told["config"]["quant"]["exclude"]
    (first / "run.json").write_text(json.dumps(told))
    assert door(["rerun", str(first)]) == 0
    assert (
        "newer than the run, so at their defaults: quant.exclude, timing.benchmark, timing.repeats, timing.warmup"
        in (capfd.readouterr().err)
    )


def test_a_rerun_that_fails_says_so(first, journal, capfd):
    told = json.loads((first / "run.json").read_text())
    told["config"]["seed"] = 13
    (first / "run.json").write_text(json.dumps(told))
    assert door(["rerun", str(first)]) == 1
    printed = capfd.readouterr()
    assert "why: ValueError: thirteen" in printed.err and "results" not in printed.out
    assert not (the_rerun() / "rerun.json").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--output", "outputs"], "--output = 'outputs': expected another folder: the artifacts of"),
        (["seed=8"], "seed: a rerun changes places only"),
        (["model.checkpoint=gone"], "model.checkpoint: there is no folder"),
    ],
)
def test_refused(first, capfd, arguments, says):
    assert door(["rerun", str(first), *arguments]) == 2
    assert says in capfd.readouterr().err and not Path("reruns").exists()


@pytest.mark.parametrize("name", ["run.json", "plan.json"])
def test_a_folder_that_is_no_run(first, capfd, name):
    (first / name).write_text("{")
    assert door(["rerun", str(first)]) == 2
    assert f"expected a run folder with a whole {name}" in capfd.readouterr().err
