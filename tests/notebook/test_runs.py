"""Runs from Python: what `import runner` loads, a run object of a new and of an old folder, errors as exceptions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from desk.make_run import PROMPTS, make_run
from hydra.core.config_store import ConfigStore

import runner
from runner.desk.run import launch

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    ConfigStore.instance().repo.pop("recipe", None)


@pytest.fixture
def stand_in(monkeypatch):
    """A worker without a model in the worker's place: seed 13 fails."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "tests/desk"), str(ROOT)]))
    monkeypatch.setattr(launch, "WORKER", "stand_in")


@pytest.mark.parametrize(
    ("code", "not_loaded"),
    [
        ("import runner", ["runner.", "torch", "hydra", "omegaconf", "pydantic", "numpy"]),
        ("import runner; dir(runner); runner.open_run", ["torch", "hydra", "numpy", "diffusers"]),
        ("import runner; runner.run; runner.Refused; runner.RunFailed", ["torch", "numpy", "diffusers"]),
    ],
)
def test_what_is_not_asked_for_is_not_loaded(code, not_loaded):
    code += f"\nimport sys\nprint([name for name in sys.modules if name.startswith({tuple(not_loaded)!r})])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_names_that_are_not_there():
    with pytest.raises(AttributeError, match="no attribute 'runs'"):
        runner.runs  # noqa: B018


def test_a_run_is_made_and_opened_again(tiny_checkpoint, stand_in, capsys):
    made = runner.run("osp12_w8a8", "seed=3", f"model.checkpoint={tiny_checkpoint}")
    assert made.state == "done" and made.config["seed"] == 3 and made.config["name"] == "osp12_w8a8"
    assert made.folder.is_absolute() and made.paths["page"].is_file() and made.paths["sample"].is_dir()
    assert "dump" in capsys.readouterr().out  # the plan, as in a terminal
    again = runner.open_run(os.path.relpath(made.folder))
    assert again == made and again.paths == made.paths
    second = runner.run("model=osp12", "seed=4", "quant=w8a8", f"model.checkpoint={tiny_checkpoint}")
    assert second.folder != made.folder and second.config["seed"] == 4


def test_an_old_run_is_read(tmp_path):
    old = runner.open_run(make_run(tmp_path / "old"))
    assert old.state == "done" and "done" in repr(old)
    assert [row["prompt"] for row in old.metrics] == PROMPTS
    assert all(row["index"] == place and row["psnr_db"] > 0 for place, row in enumerate(old.metrics))
    assert [video.prompt for video in old.videos] == PROMPTS
    for video in old.videos:
        assert video.reference is not None and video.reference.is_file()
        assert video.result is not None and video.result.is_file() and video.result != video.reference
    assert old.figures["seconds"] == pytest.approx(61.4) and old.figures["psnr_db"] > 0
    assert old.paths["folder"] == old.folder and all(path.exists() for path in old.paths.values())


def test_a_frame_needs_pandas(tmp_path):
    old = runner.open_run(make_run(tmp_path / "old"))
    try:
        import pandas
    except ImportError:
        with pytest.raises(ImportError):
            old.frame()
    else:
        assert isinstance(old.frame(), pandas.DataFrame) and list(old.frame()["prompt"]) == PROMPTS


def test_all_faults_are_told_at_once(tiny_checkpoint):
    with pytest.raises(runner.Refused) as refused:
        runner.run("osp12_w8a8", "sed=3", "model.hight=64", f"model.checkpoint={tiny_checkpoint}")
    assert len(refused.value.faults) == 2 and "did you mean model.height?" in str(refused.value)
    assert not list(Path("outputs").glob("*"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("osp12_w8a9",), "did you mean osp12_w8a8?"),
        (("osp12_w8a8", "seed"), "seed"),
        (("osp12_w8a8", "-m"), "one run"),
        (("osp12_w8a8", "show=plan"), "one run"),
        (("osp12_w8a8", "launch=print"), "one run"),
        (("osp12_w8a8", "hydra.mode=MULTIRUN", "seed=1,2"), "one run"),
    ],
)
def test_what_is_no_run_is_refused(arguments, says):
    with pytest.raises(runner.Refused, match=".") as refused:
        runner.run(*arguments)
    assert says in str(refused.value)
    assert not list(Path.cwd().rglob("run.json"))


def test_a_run_that_fails_says_what_the_terminal_would(tiny_checkpoint, stand_in):
    with pytest.raises(runner.RunFailed, match="thirteen") as failed:
        runner.run("osp12_w8a8", "seed=13", f"model.checkpoint={tiny_checkpoint}")
    assert str(failed.value).startswith("failed: ") and " where: " in str(failed.value)
    (folder,) = (file.parent for file in Path("outputs").glob("*/*/run.json"))
    assert runner.open_run(folder).state == "failed"


def test_a_folder_of_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run folder"):
        runner.open_run(tmp_path)
