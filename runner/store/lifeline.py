"""No worker outlives its desk, however the desk ends.

The desk keeps the other end of the worker's stdin and writes nothing into it. The system closes it when the desk ends,
so whoever inherited that stdin, through any launcher between, reads its end then. On Linux the kernel also ends a
worker whose own parent has died, even in the middle of a long call.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading

TOLD = "RUNNER_LIFELINE"  # set by the desk; a worker started by hand has no desk to follow
LAUNCHER = "RUNNER_LAUNCHER"  # set by a launcher of ranks: its process id


def hold() -> None:
    """End this process, at once and without a word, when the desk that started it is gone."""
    if os.environ.get(TOLD) != "stdin":
        return
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.environ.get(LAUNCHER, str(os.getppid())) != str(os.getppid()):  # it died before this line
            _end()
    threading.Thread(target=_wait, name="lifeline", daemon=True).start()


def _wait() -> None:
    while os.read(0, 1):
        pass
    _end()


def _end() -> None:
    os.kill(os.getpid(), signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
