"""Sweeps as a user meets them: what is told before anything starts, what runs, what is left, and where it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from runner.__main__ import door


def the_sweep() -> Path:
    (told,) = Path("outputs").glob("*/*/sweep.json")
    return told.parent


def states(sweep: Path) -> dict[str, str]:
    jobs = json.loads((sweep / "sweep.json").read_text())["jobs"]
    return {job: json.loads((sweep / job / "status.json").read_text())["state"] for job in jobs}


def test_what_cannot_run_is_told_before_anything_starts(journal, capfd, at):
    assert door(["-m", "+recipe=osp12_w8a8", at, "seed=1,-1,2", "model.num_frames=9,10"]) == 2
    printed = capfd.readouterr()
    told = [line for line in printed.err.splitlines() if "job" in line]
    assert len(told) == 4 and told[0].startswith("refused: job 1 (seed=1 model.num_frames=10): model.num_frames = 10: ")
    sweep = the_sweep()
    assert states(sweep) == dict(
        zip("012345", ["done", "refused", "refused", "refused", "done", "refused"], strict=True)
    )
    assert "seed = -1: expected at least 0" in (sweep / "report.html").read_text()
    rows = [line.split()[:4] for line in printed.out.splitlines() if line.strip().startswith(tuple("012345"))]
    assert ["0", "1", "9", "done"] in rows and ["3", "-1", "10", "refused"] in rows
    assert not (sweep / "multirun.yaml").exists()


def test_a_sweep_of_which_nothing_can_run_leaves_nothing(journal, at):
    assert door(["-m", "+recipe=osp12_w8a8", at, "seed=-1,-2"]) == 2
    assert not journal.exists() and not [path for path in Path("outputs").glob("*") if path.name != ".store"]


def test_a_failed_job_leaves_the_others_and_only_it_runs_again(journal, capfd, at):
    line = ["-m", "+recipe=osp12_w8a8", at, "seed=12,13,9,14"]
    assert door(line) == 1
    printed = capfd.readouterr()
    sweep = the_sweep()
    assert states(sweep) == {"0": "done", "1": "failed", "2": "failed", "3": "done"}
    out = " ".join(printed.out.split())
    assert "13 failed ValueError: thirteen" in out and "9 failed the worker was ended by SIGKILL" in out
    assert "ValueError: thirteen" in printed.err and "Traceback" not in printed.err
    assert all((sweep / job / "report.html").is_file() for job in "0123")
    assert journal.read_text().count("worker") == 2, "a new one goes on after the one that was killed"
    journal.write_text("")
    assert door(line) == 1
    made = [row for row in journal.read_text().splitlines() if not row.startswith("worker")]
    assert made == [], "what was done is reused, and what fails fails again"


def test_jobs_share_what_their_keys_share(journal, capfd, at):
    assert door(["-m", "+recipe=osp12_w8a8", at, "quant.observer=minmax,mse,minmax"]) == 0
    worker, *made = journal.read_text().splitlines()
    assert worker == "worker 3", "one serves all that share a model"
    assert sorted(made) == sorted(
        ["dump 0", *(f"{stage} {job}" for stage in ("calibrate", "quantize", "sample") for job in (0, 1))]
    )
    plans = [json.loads((the_sweep() / job / "plan.json").read_text())["stages"] for job in "012"]
    actions = [[row["action"] for row in plan if row["action"] != "skip"] for plan in plans]
    assert actions == [["run"] * 4, ["reuse", "run", "run", "run"], ["reuse"] * 4]
    reasons = {row["stage"]: row["reason"] for row in plans[2]}
    assert reasons["dump"] == reasons["sample"] == "made by job 0"


def test_over_recipes(journal, at):
    assert door(["-m", "+recipe=osp12_w8a8,osp12_float", at]) == 0
    names = [json.loads((the_sweep() / job / "run.json").read_text())["name"] for job in "01"]
    assert names == ["osp12_w8a8", "osp12_float"]
    assert journal.read_text().count("worker") == 1


def test_values_with_slashes_nest_no_folders(journal, at, tiny_checkpoint, tmp_path):
    (tmp_path / "deep").symlink_to(tiny_checkpoint.parent)
    others = f"{at},{tmp_path / 'deep' / tiny_checkpoint.name}"
    assert door(["-m", "+recipe=osp12_w8a8", others]) == 0
    assert sorted(path.name for path in the_sweep().iterdir()) == ["0", "1", "report.html", "sweep.json"]


def test_plans_of_a_sweep_are_shown(journal, capfd, at):
    assert door(["-m", "+recipe=osp12_w8a8", at, "seed=1,2", "show=plan"]) == 0
    out = capfd.readouterr().out
    assert "job 1  seed=2" in out and out.count("calibrate") == 2
    assert not journal.exists() and [path.name for path in Path("outputs").iterdir()] == [".store"]


def test_sweeps_of_one_second_have_folders_of_their_own(journal, at):
    fixed = f"hydra.sweep.dir={Path('outputs/a/here').resolve()}"
    for _ in range(2):
        assert door(["-m", "+recipe=osp12_w8a8", at, "seed=1,2", fixed]) == 0
    assert sorted(path.name for path in Path("outputs/a").iterdir()) == ["here", "here-2"]


def test_interrupted_there_is_a_table_and_a_page_all_the_same(journal, at, monkeypatch, capfd):
    from runner.desk.run import sweep

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "launch_in_turn", interrupt)
    assert door(["-m", "+recipe=osp12_w8a8", at, "seed=1,2"]) == 130
    assert "not started" in capfd.readouterr().out and (the_sweep() / "report.html").is_file()


def test_a_launcher_that_is_not_there(journal, at, capfd):
    assert door(["-m", "+recipe=osp12_w8a8", at, "seed=1,2", "hydra/launcher=jobli"]) == 2
    err = capfd.readouterr().err
    assert "hydra/launcher = 'jobli': expected basic" in err and "pip install 'dit-runner[launch]'" in err
    assert not Path("outputs").exists()


def in_a_process(folder: Path, line: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """A sweep as users type it, with the stand-in for its worker."""
    (folder / "sitecustomize.py").write_text("import runner.desk.run.launch as l; l.WORKER = 'stand_in'\n")
    path = os.pathsep.join([str(folder), os.environ["PYTHONPATH"]])
    command = [sys.executable, "-m", "runner", "-m", *line]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment, "PYTHONPATH": path}
    )


@pytest.mark.parametrize(
    "launcher",
    [
        ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
        pytest.param(
            ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=2"],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["joblib", "submitit"],
)
def test_elsewhere(launcher, journal, at, tmp_path):
    """In processes that a launcher starts: as users type it, because what they run is pickled."""
    pytest.importorskip(f"hydra_plugins.hydra_{'joblib' if 'joblib' in launcher[0] else 'submitit'}_launcher")
    done = in_a_process(tmp_path, ["+recipe=osp12_w8a8", at, "seed=12,13,-1,14", *launcher])
    assert done.returncode == 1, done.stderr
    sweep = the_sweep()
    assert states(sweep) == {"0": "done", "1": "failed", "2": "refused", "3": "done"}
    out = " ".join(done.stdout.split())
    assert "13 failed ValueError: thirteen" in out and "-1 refused seed = -1: expected at least 0" in out
    assert all((sweep / job / "report.html").is_file() for job in "013") and (sweep / "report.html").is_file()
    assert (sweep / "0" / "dump" / "made").read_text() == "dump"


def test_a_page_that_cannot_be_written_costs_no_result(journal, at, monkeypatch, capfd):
    from runner.desk import report
    from runner.desk.run import sweep

    def fail(*arguments):
        raise ValueError("no page today")

    monkeypatch.setattr(sweep, "write_sweep", fail)
    monkeypatch.setattr(sweep, "write", fail)
    assert door(["-m", "+recipe=osp12_w8a8", at, "seed=1,2"]) == 0
    assert states(the_sweep()) == {"0": "done", "1": "done"}
    monkeypatch.setattr(report, "write", fail)
    assert door(["+recipe=osp12_w8a8", at, "seed=1"]) == 0
    out = capfd.readouterr().out
    assert "page     not written: ValueError: no page today" in out


def test_what_fails_on_the_desk_s_half_ends_in_three_lines_too(journal, at, monkeypatch, capfd):
    from runner.desk.run.job import Job

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Job, "write", fail)
    assert door(["-m", "+recipe=osp12_w8a8", at, "seed=1,2"]) == 1
    printed = capfd.readouterr()
    where = the_sweep().resolve() / "traceback.txt"
    assert printed.err.splitlines() == [
        "failed: the sweep",
        "   why: OSError: [Errno 28] No space left on device",
        f" where: {where}",
    ]
    assert "No space left" in where.read_text() and printed.out.count("not started") == 2


def test_the_jobs_are_listed_before_the_first_starts(journal, at, capfd):
    assert door(["-m", "+recipe=osp12_w8a8", at, "quant.observer=minmax,mse,minmax", "until=calibrate"]) == 0
    rows = [line.split() for line in capfd.readouterr().out.splitlines()]
    (first,) = [place for place, row in enumerate(rows) if row[:2] == ["job", "quant.observer"] and "runs" in row]
    assert rows[first + 2][:4] == ["0", "minmax", "dump,", "calibrate"]
    assert rows[first + 3] == ["1", "mse", "calibrate", "dump"], "of which dump is reused"
    assert rows[first + 4] == ["2", "minmax", "dump,", "calibrate"], "both of which are reused"


@pytest.mark.slow
def test_a_launcher_whose_process_dies(journal, at, tmp_path):
    """The desk of one job is killed: joblib then gives up the others. All is said, and the same command goes on."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    line = ["+recipe=osp12_w8a8", at, "seed=12,8", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    done = in_a_process(tmp_path, line, KILL_PARENT="1")
    assert done.returncode == 1, done.stderr
    assert "failed: the launcher\n   why: TerminatedWorkerError" in done.stderr and "Traceback" not in done.stderr
    out = " ".join(done.stdout.split())
    assert "8 failed its process ended without a word" in out
    assert (the_sweep() / "report.html").is_file()
