"""Hit at any of its writes, a run loses one prompt at most, leaves no process, and the same command finishes it with
the bytes of an undisturbed run. On the shipped weights, four steps."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from crash_runs import (
    ARGUMENTS,
    ENVIRONMENT,
    WORKING,
    entries,
    finish,
    processes,
    results,
    runs,
    start,
    stored_before,
    until,
)

from runner.store.status import read_status

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc who is alive")

TRIES = Path(__file__).with_name("crash_tries.py")


def hit(how: str, undisturbed: Path, store: Path, *who: str | Path) -> Counter[str]:
    """Hit at every operation; how often at which, in which stage."""
    done = subprocess.run(
        [sys.executable, TRIES, how, undisturbed / ".store", store, *who],
        stdout=subprocess.PIPE, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 0
    told = json.loads(done.stdout)
    hits = Counter(f"{name} {stage}".strip() for name, _, stage in told["hits"])
    print(f"\n{how}, {sum(hits.values())} hits:", dict(hits))
    assert told["left"] == []
    return hits


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "fail"])
def test_a_worker_hit_at_every_rename_and_fsync(undisturbed, tmp_path, how):
    template = tmp_path / "template"
    template.mkdir()
    (run,) = runs(undisturbed)
    for name in ("run.json", "plan.json"):
        shutil.copy(run / name, template)
    hits = hit(how, undisturbed, tmp_path / ".store", "worker", template)
    assert entries(tmp_path) == entries(undisturbed)
    assert set(hits) >= {f"{name} {stage}" for name in ("rename", "replace", "fsync") for stage in WORKING}


@pytest.mark.slow
def test_a_desk_hit_at_every_rename_and_fsync(undisturbed, tmp_path):
    stored_before(undisturbed, tmp_path, "calibrate")
    arguments = [*ARGUMENTS, "until=calibrate", f"output={tmp_path}"]
    hits = hit("kill", undisturbed, tmp_path / ".store", "desk", *arguments)
    assert hits["replace"] >= 5  # the plan, the provenance, the run, a lineage, the page
    assert (runs(tmp_path)[-1] / "report.html").is_file()


def test_two_runs_at_once_make_each_artifact_once(undisturbed, tmp_path):
    both = [start(tmp_path), start(tmp_path)]
    told = [desk.communicate(timeout=500)[0] for desk in both]
    assert [desk.returncode for desk in both] == [0, 0], told
    assert entries(tmp_path) == entries(undisturbed)
    logs = [(run / "run.log").read_text() for run in runs(tmp_path)]
    assert len(logs) == 2
    for stage in WORKING:
        assert sum(log.count(f"{stage} starts") for log in logs) == 1, stage
    assert any(" waits for process " in words and str(tmp_path) in words for words in told)
    for run in runs(tmp_path):
        assert results(run) == results(runs(undisturbed)[0])


@pytest.mark.parametrize(
    ("stage", "answers"),
    [("dump", False), pytest.param("dump", True, marks=pytest.mark.slow), ("sample", True)],
)
def test_asked_to_end_a_run_ends_soon_and_leaves_a_clean_store(undisturbed, tmp_path, stage, answers):
    stored_before(undisturbed, tmp_path, stage)
    desk = start(tmp_path)
    until(lambda: list(tmp_path.glob(".store/drafts/*/*.part")) or desk.poll() is not None, 300)
    worker = next(pid for pid, role in processes(tmp_path).items() if role == "worker")  # it may have a child, ffmpeg
    if not answers:
        os.kill(worker, signal.SIGSTOP)
    interrupt(desk, tmp_path)
    assert read_status(runs(tmp_path)[-1])["state"] == "interrupted"
    assert entries(tmp_path).items() <= entries(undisturbed).items()
    finish(tmp_path)
    assert entries(tmp_path) == entries(undisturbed)


@pytest.mark.slow
def test_asked_to_end_a_sweep_ends_as_soon(undisturbed, tmp_path):
    """In its second job, while the page of the first is made."""
    desk = start(tmp_path, "seed=1,2,3", flags=("-m",))
    until(lambda: len(list(tmp_path.glob("*/*/*/status.json"))) == 2 or desk.poll() is not None, 300)
    told = interrupt(desk, tmp_path)
    jobs = sorted(tmp_path.glob("*/*/[012]"))
    assert [read_status(job).get("state") for job in jobs] == ["done", "interrupted", "interrupted"]
    assert "interrupted" in told and (jobs[0].parent / "report.html").is_file()
    assert {name.rpartition("-")[0] for name in entries(tmp_path)} == set(WORKING)


def interrupt(desk: subprocess.Popen[str], output: Path) -> str:
    """Ask a command to end, which it does within 5 seconds with all that it has started; what it has said."""
    began = time.monotonic()
    desk.send_signal(signal.SIGINT)
    until(lambda: processes(output).keys() <= {desk.pid}, 5)
    told, _ = desk.communicate(timeout=60)
    took = time.monotonic() - began
    print(f"\nended {took:.1f} s after it was asked to, at a load of {os.getloadavg()[0]:.1f}")
    assert desk.returncode == 130, told
    assert took < 5 or os.getloadavg()[0] > (os.cpu_count() or 1)  # with others, and then the page takes what it takes
    assert not processes(output)
    assert not [path for path in output.glob(".store/**/*") if path.name.startswith(".") or path.suffix == ".part"]
    return told
