"""A worker ends when its desk does, however that ends, and through a launcher between them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runner.store import lifeline

WORKER = """
import os, sys, time
from pathlib import Path
from runner.store import lifeline
{before}
lifeline.hold()
Path(sys.argv[1], "pid").write_text(str(os.getpid()))
time.sleep(60)
"""
LAUNCHER = "import subprocess, sys; subprocess.run([sys.executable, 'worker.py', sys.argv[1]])"
DESK = """
import sys
from pathlib import Path
from runner.desk.run import launch
launch.WORKER = sys.argv[2]
launch.launch(Path(sys.argv[1]), {"hardware": {"env": {}}, "parallel": {"world_size": 1}})
"""


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # a zombie waits for somebody to ask after it


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc who is alive")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
@pytest.mark.parametrize("between", ["nobody", "a launcher"])
@pytest.mark.parametrize("kernel", [True, False])
def test_no_orphan_is_left(tmp_path, number, between, kernel):
    before = "" if kernel else "import ctypes; ctypes.CDLL = lambda name: type('', (), {'prctl': print})"
    (tmp_path / "worker.py").write_text(WORKER.format(before=before))
    (tmp_path / "launcher.py").write_text(LAUNCHER)
    root = Path(lifeline.__file__).parents[2]
    desk = subprocess.Popen(
        [sys.executable, "-c", DESK, str(tmp_path), "worker" if between == "nobody" else "launcher"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(tmp_path)])},
    )
    try:
        deadline = time.monotonic() + 20
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        desk.send_signal(number)
        desk.wait()
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 10
    while alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_worker_started_by_hand_follows_nobody(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != lifeline.TOLD}
    root = Path(lifeline.__file__).parents[2]
    code = "from runner.store import lifeline; import time; lifeline.hold(); time.sleep(0.5); print('here')"
    done = subprocess.run(
        [sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        env={**environment, "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert done.stdout == "here\n"
