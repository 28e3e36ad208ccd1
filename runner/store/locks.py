"""Locks between the processes of one machine, each a file under a name; a lock dies with the process that holds it.

The kernel keeps the lock (flock), so nobody has to guess whether a file left by a killed process still means something:
what the file says is only whom the others wait for. Where the file system or the platform has no such locks, there are
none, and a key has one writer only as long as nobody starts two.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

POLL = 0.1  # seconds between two tries
NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


class Held(Exception):
    """Somebody else holds the lock, and waiting was not wanted; the text says who."""


@contextmanager
def lock(path: Path, owner: str, shared: bool = False, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the lock of the file `path`, alone or together with other `shared` holders.

    If somebody else has it, `waiting` is told who (once a holder), and the lock is waited for; without `waiting`, Held
    is raised. Where nothing can be written, a shared lock that nobody could take from us is not taken at all; an
    exclusive one raises the OSError.
    """
    handle = _acquire(path, shared, waiting)
    try:
        if handle is not None and not shared:
            _say(handle, owner)
        yield
    finally:
        if handle is not None:
            if not shared:
                _say(handle, None)
            os.close(handle)  # and with it the lock


def _acquire(path: Path, shared: bool, waiting: Callable[[str], None] | None) -> int | None:
    told = before = None
    while True:
        handle = _open(path, shared)
        if handle is None or fcntl is None:
            return handle
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            if _is_still(path, handle):
                return handle
            os.close(handle)  # it was removed while this process opened it: what is locked is no longer the lock
            continue
        except BlockingIOError:
            holder = _holder(path)
        except OSError as error:
            if error.errno in NO_LOCKS_HERE:
                return handle
            os.close(handle)
            raise
        os.close(handle)
        if waiting is None:
            raise Held(holder)
        if holder == before != told:  # seen twice: a short wait is not worth a line, nor a name half written
            waiting(holder)
            told = holder
        before = holder
        time.sleep(POLL)


def _open(path: Path, shared: bool) -> int | None:
    """The lock's file, made if need be; None if it is not there, cannot be made, and need not be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        if not shared or error.errno not in READ_ONLY:
            raise
    try:
        return os.open(path, os.O_RDONLY)
    except OSError:
        return None


def _is_still(path: Path, handle: int) -> bool:
    try:
        there, opened = os.stat(path), os.fstat(handle)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (opened.st_dev, opened.st_ino)


def _say(handle: int, owner: str | None) -> None:
    """Write who holds the lock, for those who wait; the lock holds without it, on a full disk too."""
    told = {} if owner is None else {"process": os.getpid(), "machine": platform.node(), "owner": owner}
    try:
        os.ftruncate(handle, 0)
        if told:
            os.pwrite(handle, json.dumps(told).encode(), 0)
    except OSError:
        pass


def _holder(path: Path) -> str:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        elsewhere = "" if told["machine"] == platform.node() else f" on {told['machine']}"
        return f"process {told['process']}{elsewhere} ({told['owner']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another run"  # a shared holder says nothing
