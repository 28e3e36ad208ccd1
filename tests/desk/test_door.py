"""The front door as a user meets it: what is printed, the exit status, what lies in the folder afterwards."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runner.__main__ import door
from runner.config.schema import keys
from runner.desk.run import launch
from runner.store.artifacts import Store

ROOT = Path(__file__).parents[2]
LONGEST = 2.5  # seconds of processor time; torch and diffusers alone take more


def runs() -> list[Path]:
    return sorted(path.parent for path in Path("outputs").glob("*/**/run.json"))


def test_who_has_read_enough_sees_no_traceback():
    pipe = "python -m runner --help | head -1; exit ${PIPESTATUS[0]}"
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(["bash", "-c", pipe], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("usage")


def test_without_arguments_recipes_are_listed(capsys):
    assert door([]) == 0
    out = capsys.readouterr().out
    assert "osp12_w8a8 " in out and "Float videos beside their W8A8 twins" in out


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["+recipe=osp12_w8a8", "--help"]])
def test_help_names_all_there_is(capsys, arguments):
    assert door(arguments) == 0
    out = capsys.readouterr().out
    assert all(f"  {key}=" in out for key in keys())
    assert "model.num_frames=93" in out and "quant.scheme=none" in out and "sampler.guidance_scale=7.5" in out
    assert "none w8a8" in out and "osp12_93x720p_w8a8" in out


def test_config_is_shown(capsys, at):
    assert door(["+recipe=osp12_w8a8", "seed=5", "--cfg", "job"]) == 0
    out = capsys.readouterr().out
    assert "name: osp12_w8a8" in out and "seed: 5" in out and "scheme: w8a8" in out


@pytest.mark.parametrize(
    ("about", "says"), [("all", "Hydra 1.3"), ("defaults", "recipe/osp12_w8a8"), ("config", "Config search path")]
)
def test_hydra_is_asked_about_itself(at, about, says):
    """In a process of its own: Hydra then logs to the terminal, and goes on to."""
    command = [sys.executable, "-m", "runner", "+recipe=osp12_w8a8", at, "--info", about]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0 and says in done.stdout
    assert not Path("outputs").exists()


def test_tab_completion(capsys, monkeypatch):
    assert door(["-sc", "install=bash"]) == 0
    assert "complete" in capsys.readouterr().out
    monkeypatch.setenv("COMP_LINE", "runner +recipe=osp12_")
    monkeypatch.setenv("COMP_POINT", "21")
    assert door(["-sc", "query=bash"]) == 0
    assert "+recipe=osp12_w8a8" in capsys.readouterr().out.split()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["+recipe=osp12_w8a9"], "recipe = 'osp12_w8a9': expected opensora12_benchmark, "),
        (["recipe=osp12_w8a8"], "use +recipe=osp12_w8a8"),
        (["quant=w8a9"], "quant = 'w8a9': expected none, w8a8; did you mean w8a8?"),
        (["quantt=w8a8"], "quantt: there is no such key; did you mean"),
        (["+quant.bit=4"], "quant.bit: there is no such key"),
        (["model.num_frame=5"], "did you mean model.num_frames?"),
        (["prompts.text=a, b"], "Ambiguous value for argument 'prompts.text=a, b'"),
        (["prompts.text=a(b"], "needs quotes of its own"),
        (["quant.exclude=${nothing.there}"], "quant.exclude"),
        (["output=/proc/nothing/there"], "output: /proc/nothing cannot be made"),
    ],
)
def test_refusals_end_with_two_and_leave_nothing(capsys, at, arguments, says):
    assert door([*arguments, at]) == 2
    printed = capsys.readouterr()
    assert says in printed.err and printed.err.startswith("refused: ") and "Traceback" not in printed.err
    assert not Path("outputs").exists()


def test_hydra_s_own_faults_come_first(capsys, at):
    assert door(["quant=w8a9", "model.num_frames=2", at]) == 2
    said = capsys.readouterr().err
    assert "quant = 'w8a9'" in said and "num_frames" not in said
    assert door(["quant=w8a8", "model.num_frames=2", "model.fps=0", at]) == 2
    said = capsys.readouterr().err
    assert said.startswith("refused: 2 faults:\n") and "model.num_frames = 2" in said and "model.fps = 0" in said


def test_an_output_folder_that_cannot_be_made(capsys, at):
    Path("file").write_text("")
    assert door(["+recipe=osp12_w8a8", at, "output=file/outputs"]) == 2
    assert "refused: output: " in capsys.readouterr().err and Path("file").read_text() == ""


def test_plan_is_shown_and_nothing_runs(capsys, at):
    assert door(["+recipe=osp12_w8a8", at, "show=plan"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"weights  checkpoint {at.partition('=')[2]}\n")
    rows = [line.split()[:2] for line in out.splitlines() if line.startswith(" ")]
    for row in (["dump", "run"], ["calibrate", "run"], ["quantize", "run"], ["sample", "run"]):
        assert row in rows
    assert "search-cache" not in out  # what has no part in the run
    assert [path.name for path in Path("outputs").iterdir()] == [".store"]


def test_a_run_and_the_same_again(journal, capfd, at):
    assert door(["+recipe=osp12_w8a8", at, "seed=7"]) == 0
    (run,) = runs()
    out = capfd.readouterr().out
    assert f"page     {run.resolve()}/report.html" in out
    assert run.parent == Path("outputs/osp12_w8a8")
    assert {path.name for path in run.iterdir()} == {
        *("run.json", "plan.json", "provenance.json", "status.json", "report.html"),
        *("dump", "calibrate", "quantize", "sample"),
    }

    described = json.loads((run / "run.json").read_text())
    assert described["command"] == ["python", "-m", "runner", "+recipe=osp12_w8a8", at, "seed=7"]
    assert described["name"] == "osp12_w8a8" and described["origin"]["seed"] == "command line"
    assert described["checkpoint"] == {
        "path": at.partition("=")[2], "label": f"checkpoint {at.partition('=')[2]}", "embedded": False,
    }  # fmt: skip
    assert {key.partition(".")[0] for key in keys()} == set(described["config"])
    plan = json.loads((run / "plan.json").read_text())
    assert plan["store"] == str(Path("outputs/.store").resolve())
    shown = [line.split()[:2] for line in out.splitlines() if line.startswith(" ")]
    of_stages = [row for row in shown if row and row[0] in {row["stage"] for row in plan["stages"]}]
    assert of_stages == [[row["stage"], row["action"]] for row in plan["stages"] if row["action"] != "skip"]
    for row in plan["stages"]:
        lineage = Path(plan["store"]) / "lineage" / f"{row['does']}-{row['key']}.json"
        assert lineage.is_file() == (row["action"] != "skip")

    journal.write_text("")
    assert door(["+recipe=osp12_w8a8", at, "seed=7"]) == 0
    assert journal.read_text() == "", "all is stored: no worker"
    again = next(other for other in runs() if other != run)
    rows = json.loads((again / "plan.json").read_text())["stages"]
    assert [row["action"] for row in rows] == ["skip", "skip", "reuse", "reuse", "reuse", "skip", "skip", "reuse"]
    assert (again / "dump" / "made").stat().st_ino == (run / "dump" / "made").stat().st_ino


def test_a_recipe_may_say_by_itself_that_it_is_a_sweep(journal, at):
    Path("recipes").mkdir()
    Path("recipes/mine.yaml").write_text("defaults: [osp12_w8a8]\nhydra: {mode: MULTIRUN}\n")
    assert door(["+recipe=mine", at, "seed=1,2"]) == 0
    assert len(runs()) == 2 and list(Path("outputs").glob("*/*/sweep.json"))


def test_runs_of_one_second_have_folders_of_their_own(journal, at):
    fixed = f"hydra.run.dir={Path('outputs/here').resolve()}"
    assert door(["+recipe=osp12_w8a8", at, fixed]) == 0
    assert door(["+recipe=osp12_w8a8", at, fixed]) == 0
    assert [run.name for run in runs()] == ["here", "here-2"]


def test_failure_ends_with_one_in_three_lines(journal, capfd, at):
    assert door(["+recipe=osp12_w8a8", at, "seed=13"]) == 1
    (run,) = runs()
    assert capfd.readouterr().err.splitlines() == [
        "failed: stage dump",
        "   why: ValueError: thirteen",
        f" where: {run.resolve()}",
    ]


def test_what_fails_on_the_desk_s_half_ends_in_three_lines_too(journal, at, capfd, monkeypatch):
    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Store, "write_lineage", fail)
    assert door(["+recipe=osp12_w8a8", at]) == 1
    (run,) = runs()
    assert capfd.readouterr().err.splitlines() == [
        "failed: the desk",
        "   why: OSError: [Errno 28] No space left on device",
        f" where: {run.resolve() / 'traceback.txt'}",
    ]
    assert json.loads((run / "status.json").read_text())["state"] == "failed"


def test_interrupted(journal, at, monkeypatch, capsys):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "launch", interrupt)
    assert door(["+recipe=osp12_w8a8", at]) == 130


def test_arguments_and_environment_are_put_back(at, monkeypatch):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    before = list(sys.argv)
    door(["quant=w8a9", at])
    assert sys.argv == before and "HYDRA_FULL_ERROR" not in os.environ


def test_damaged_artifact_is_made_again(journal, at):
    assert door(["+recipe=osp12_w8a8", at]) == 0
    stages = json.loads((runs()[0] / "plan.json").read_text())["stages"]
    row = next(row for row in stages if row["stage"] == "dump")
    store = Store(Path("outputs/.store"))
    (store.root / f"dump-{row['key']}" / "made").write_text("altered")
    assert door(["+recipe=osp12_w8a8", at]) == 0
    rows = json.loads((runs()[-1] / "plan.json").read_text())["stages"]
    assert [row["action"] for row in rows] == ["skip", "skip", "run", "reuse", "reuse", "skip", "skip", "reuse"]
    assert store.find("dump", row["key"], thorough=True)


def test_a_store_that_cannot_be_written_is_said_before_anything_runs(journal, at, capsys, monkeypatch):
    monkeypatch.setattr(Store, "writable", lambda self: PermissionError(13, "Permission denied"))
    assert door(["+recipe=osp12_w8a8", at]) == 2
    err = capsys.readouterr().err
    assert "expected a store that can be written, since dump, calibrate, quantize, sample must run" in err
    assert "Permission denied" in err and not runs()
    assert door(["+recipe=osp12_w8a8", at, "show=plan"]) == 0


def test_an_artifact_of_a_newer_version_is_said_before_anything_runs(journal, at, capsys):
    assert door(["+recipe=osp12_w8a8", at]) == 0
    (run,) = runs()
    (entry,) = Path("outputs/.store").glob("dump-*")
    manifest = entry / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 99}))
    capsys.readouterr()
    assert door(["+recipe=osp12_w8a8", at]) == 2
    assert "has a manifest of format 99, newer than 1; update the runner" in capsys.readouterr().err
    assert runs() == [run]


def test_the_desk_imports_no_torch(tiny_checkpoint):
    """In a process of its own: all of the desk's modules, a plan and a refusal."""
    code = (
        "import sys, pkgutil, importlib, runner.desk\n"
        "from runner.__main__ import door\n"
        "for module in pkgutil.walk_packages(runner.desk.__path__, 'runner.desk.'):\n"
        "    importlib.import_module(module.name)\n"
        f"assert door(['+recipe=osp12_w8a8', 'model.checkpoint={tiny_checkpoint}', 'show=plan']) == 0\n"
        f"assert door(['+recipe=osp12_w8a8', 'model.checkpoint={tiny_checkpoint}', 'model.num_frames=2']) == 2\n"
        "assert door(['--help']) == 0\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)


def spent(*arguments: str, status: int = 0) -> float:
    """Seconds of processor time that an answer takes: a busy machine passes, and an import of torch does not. (What a
    user waits for is held by benchmarks/bench_desk.py.)"""
    before = os.times()
    command = [sys.executable, "-m", "runner", *arguments]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    after = os.times()
    assert done.returncode == status, done.stderr
    return after.children_user + after.children_system - before.children_user - before.children_system


def test_answers_come_at_once(at):
    for arguments in ([], ["--help"], ["schema"], ["+recipe=osp12_w8a8", at, "show=plan"]):
        assert spent(*arguments) < LONGEST, arguments
    wrong = ["+recipe=osp12_w8a8", at, "model.num_frames=2", "model.dtype=bf61", "prompts.text=nowhere.txt"]
    assert spent(*wrong, status=2) < LONGEST


def test_a_plan_on_known_weights_of_17_gb_comes_at_once(tiny_checkpoint, tmp_path):
    """A file with a hole, whose hash is known by its path, size, time and inode."""
    released = tmp_path / "released"
    shutil.copytree(tiny_checkpoint.parent, released)
    weights = released / tiny_checkpoint.name / "diffusion_pytorch_model.safetensors"
    with weights.open("r+b") as file:
        file.truncate(17_000_000_000)
    state = weights.stat()
    Path("outputs/.store").mkdir(parents=True)
    known = {str(weights): [state.st_size, state.st_mtime_ns, state.st_ino, "9" * 64]}
    Path("outputs/.store/fingerprints.json").write_text(json.dumps(known))
    assert spent("+recipe=osp12_w8a8", f"model.checkpoint={weights.parent}", "show=plan") < LONGEST
