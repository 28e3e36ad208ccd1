"""A worker that ends well, badly, or is asked to end. A stand-in of a few lines takes the real one's place."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from runner.desk import launch
from runner.desk.launch import RunFailed


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """`worker(code)`: what the worker does instead; `run` is the run folder there and what is returned here."""

    def stand_in(code: str) -> Path:
        (tmp_path / "stand_in.py").write_text(
            f"import json, os, sys, time\nfrom pathlib import Path\nrun = Path(sys.argv[1])\n{textwrap.dedent(code)}"
        )
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setattr(launch, "WORKER", "stand_in")
        run = tmp_path / "run"
        run.mkdir()
        return run

    return stand_in


def test_worker_gets_the_folder_the_environment_and_the_terminal(worker, capfd, monkeypatch):
    monkeypatch.setenv("KEPT", "yes")
    run = worker("print('hello'); (run / 'seen').write_text(os.environ['KEPT'] + os.environ['SET'])")
    launch.launch(run, {"SET": "too"})
    assert (run / "seen").read_text() == "yestoo"
    assert capfd.readouterr().out == "hello\n"


def test_failure_that_was_told(worker):
    run = worker("""
        (run / "status.json").write_text(json.dumps({"state": "failed", "stage": "quantize", "error": "ValueError: x"}))
        (run / "traceback.txt").write_text("Traceback")
        sys.exit(1)
    """)
    with pytest.raises(RunFailed) as failed:
        launch.launch(run, {})
    assert str(failed.value).splitlines() == [
        "failed: stage quantize",
        "   why: ValueError: x",
        f" where: {run / 'traceback.txt'}",
    ]


def test_failure_that_was_not(worker):
    run = worker("""
        (run / "status.json").write_text(json.dumps({"state": "running", "stage": "dump"}))
        os.kill(os.getpid(), 9)
    """)
    with pytest.raises(RunFailed, match="SIGKILL .*memory") as failed:
        launch.launch(run, {})
    assert failed.value.what == "stage dump" and failed.value.where == run


def test_failure_before_anything(worker):
    with pytest.raises(RunFailed, match="before its first stage"):
        launch.launch(worker("sys.exit(3)"), {})


def test_why_is_said_in_one_line(worker):
    run = worker("""
        (run / "status.json").write_text(json.dumps({"state": "failed", "stage": "dump", "error": "E: a\\n  b\\n  c"}))
        sys.exit(1)
    """)
    with pytest.raises(RunFailed) as failed:
        launch.launch(run, {})
    assert len(str(failed.value).splitlines()) == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stubborn", [False, True])
def test_asked_to_end_the_desk_ends_its_worker(worker, tmp_path, number, stubborn):
    run = worker(f"""
        import signal
        if {stubborn}:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (run / "pid").write_text(str(os.getpid()))
        time.sleep(60)
    """)
    desk = (
        "from pathlib import Path; from runner.desk import launch; launch.WORKER = 'stand_in'; launch.PATIENCE = 0.3\n"
        f"try: launch.launch(Path({str(run)!r}), {{}})\nexcept KeyboardInterrupt: raise SystemExit(130)"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(launch.__file__).parents[2])])
    process = subprocess.Popen(
        [sys.executable, "-c", desk], env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 20
    while not (run / "pid").exists() or not (run / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(10) == 130
    with pytest.raises(ProcessLookupError):
        os.kill(int((run / "pid").read_text()), 0)


def test_handlers_are_put_back(worker):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    launch.launch(worker("pass"), {})
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
