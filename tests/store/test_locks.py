"""One holder at a time; the others learn who it is; a killed holder holds nothing."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runner.store import locks
from runner.store.locks import Held, lock

HOLD = """
import sys, time
from pathlib import Path
from runner.store.locks import lock
with lock(Path(sys.argv[1]), "run-1", shared=sys.argv[2] == "shared"):
    print("held", flush=True)
    time.sleep(float(sys.argv[3]))
"""
Holder = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "locks" / "dump-0123"


@pytest.fixture
def holder(file: Path) -> Iterator[Holder]:
    """`holder(seconds, how)`: another process that has the lock."""
    started = []

    def hold(seconds: float = 60, how: str = "alone") -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLD, str(file), how, str(seconds)]
        root = str(Path(locks.__file__).parents[2])
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": root})
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        return process

    yield hold
    for process in started:
        process.kill()
        process.communicate()


def test_another_process_is_named(file, holder):
    process = holder()
    with pytest.raises(Held, match=rf"process {process.pid} \(run-1\)"), lock(file, "run-2"):
        pass


def test_waiting_ends_when_the_holder_does(file, holder):
    process, told = holder(1.0), []
    with lock(file, "run-2", waiting=told.append):
        assert process.wait(5) == 0
    assert told == [f"process {process.pid} (run-1)"]


def test_a_killed_holder_holds_nothing(file, holder):
    process, told = holder(), []
    threading.Timer(0.5, process.send_signal, [signal.SIGKILL]).start()
    start = time.monotonic()
    with lock(file, "run-2", waiting=told.append):
        assert time.monotonic() - start < 5
    assert told == [f"process {process.pid} (run-1)"]


def test_a_lock_is_not_inherited_by_what_its_holder_starts(file):
    with lock(file, "run-1"):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        with lock(file, "run-2"):
            pass
    finally:
        child.kill()
        child.wait()


def test_sharers_share_and_keep_others_out(file, holder):
    holder(60, "shared")
    with lock(file, "run-2", shared=True):
        pass
    with pytest.raises(Held, match="another run"), lock(file, "run-2"):
        pass


def test_a_lock_that_was_removed_under_a_waiter_is_taken_anew(file):
    """Prune removes a lock's file while it holds it: two processes must not hold two files of one name."""
    order = []

    def wait() -> None:
        with lock(file, "run-2", waiting=lambda _: order.append("waits")):
            with pytest.raises(Held), lock(file, "run-3"):
                pass
            order.append("holds")

    waiter = threading.Thread(target=wait)
    with lock(file, "prune"):
        waiter.start()
        while "waits" not in order:
            time.sleep(0.01)
        file.unlink()
    waiter.join(10)
    assert order == ["waits", "holds"] and file.exists()


def test_where_nothing_can_be_written_sharing_goes_without(file, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "open", refuse)
    with lock(file, "run-1", shared=True):
        pass
    with pytest.raises(OSError, match="Read-only"), lock(file, "run-1"):
        pass


def test_a_file_system_without_locks_goes_without(file, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with lock(file, "run-1"), lock(file, "run-2"):
        pass


def test_a_full_disk_does_not_stop_a_lock(file, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with lock(file, "run-1"), pytest.raises(Held, match="another run"), lock(file, "run-2"):
        pass
