"""From a run folder to a worker process, and back to one exit status and at most three lines about a failure."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from runner import lifeline
from runner.desk.fingerprints import write_whole

WORKER = "runner.worker"
LONGEST_REASON = 500  # characters of a failure's reason on the terminal; all of it is in status.json
PATIENCE = 3.0  # seconds that a worker has to end by itself after it was asked to
ASKED_TO_END = ("SIGINT", "SIGTERM", "SIGHUP")


class RunFailed(Exception):
    """A run that was started and did not finish: what failed, why, and where to read on."""

    def __init__(self, what: str, why: str, where: Path) -> None:
        self.what, self.why, self.where = what, why, where
        super().__init__(what, why, where)

    def __str__(self) -> str:
        return f"failed: {self.what}\n   why: {self.why}\n where: {self.where}"


def launch(run: Path, environment: Mapping[str, str]) -> None:
    """Run the worker on a run folder until it ends. Its output passes through.

    `environment` is set before its first import. Being asked to end (Ctrl-C, SIGTERM, a closed terminal) is passed on
    to it, and after some patience enforced; then KeyboardInterrupt is raised. Raises RunFailed if the worker fails.
    """
    command = [sys.executable, "-m", WORKER, str(run)]
    # A session of its own: the terminal's Ctrl-C reaches the desk alone, which passes it on exactly once.
    # Nothing is ever written into its stdin: it is the lifeline, whose end tells that the desk is gone.
    told = {**os.environ, **environment, lifeline.TOLD: "stdin"}
    worker = subprocess.Popen(command, env=told, stdin=subprocess.PIPE, start_new_session=True)
    try:
        with _interruptible():
            status = worker.wait()
    except KeyboardInterrupt:
        _end(worker)
        raise
    if status != 0:
        failure = _failure(run, status)
        told = read_status(run)
        if told.get("state") == "running":  # it was killed before it could say so itself
            write_whole(run / "status.json", json.dumps({**told, "state": "failed", "error": failure.why}))
        raise failure


@contextmanager
def _interruptible() -> Iterator[None]:
    """Whatever asks this process to end raises KeyboardInterrupt here; what it ignores (nohup) it goes on to ignore."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in ASKED_TO_END if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        numbers = []  # only the main thread may say how signals are met
    before = {n: signal.getsignal(n) for n in numbers if signal.getsignal(n) is not signal.SIG_IGN}
    try:
        for number in before:
            signal.signal(number, interrupt)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(worker: subprocess.Popen[bytes]) -> None:
    """Ask the worker to stop, then make it: none outlives the desk. Asking again makes the next step come at once."""
    for number, patience in ((signal.SIGINT, PATIENCE), (signal.SIGTERM, 1.0)):
        worker.send_signal(number)
        try:
            worker.wait(patience)
            return
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            continue
    worker.kill()
    worker.wait()


def _failure(run: Path, status: int) -> RunFailed:
    """What a worker that ended with `status` left behind about why."""
    told = read_status(run)
    stage = told.get("stage")
    where = next((run / name for name in ("traceback.txt", "run.log") if (run / name).is_file()), run)
    what = f"stage {stage}" if stage else "the worker, before its first stage"
    if told.get("state") == "failed":
        return RunFailed(what, textwrap.shorten(str(told.get("error")), LONGEST_REASON, placeholder=" ..."), where)
    if status < 0:
        name = signal.Signals(-status).name
        memory = " (on Linux often because memory ran out)" if name == "SIGKILL" else ""
        return RunFailed(what, f"the worker was ended by {name}{memory}", where)
    return RunFailed(what, f"the worker ended with status {status} and said no more", where)


def read_status(run: Path) -> dict[str, Any]:
    """status.json of a run, {} if there is none yet."""
    try:
        status: dict[str, Any] = json.loads((run / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return status
