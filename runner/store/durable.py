"""What is written so that a crash, of the process or of the machine, leaves all of it or nothing."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

UNFINISHED = ".part"  # names that end so are still being written; whoever finds one later may throw it away
TRIALS = "trials"  # the folder of a draft that a stage wants where it is cut off, and nobody once it is committed
FULL = (errno.ENOSPC, errno.EDQUOT)


def unfinished(target: Path) -> Path:
    """An empty folder to write into what is to become `target`."""
    folder = target.with_name(target.name + UNFINISHED)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def finish(target: Path, beside: Iterable[Path] = ()) -> None:
    """Make what was written into `unfinished(target)` appear as `target`, on disk together with the files `beside` it.

    A target that is there already stays: what is made twice from the same seed is the same.
    """
    folder = target.with_name(target.name + UNFINISHED)
    if target.exists():
        shutil.rmtree(folder)
        return
    for file in beside:
        sync(file)
    sync_tree(folder)
    os.rename(folder, target)
    sync(target.parent)


def drop_unfinished(folder: Path) -> None:
    """Remove what is still unfinished below a folder."""
    for part in [path for path in folder.rglob("*") if path.name.endswith(UNFINISHED)]:
        if part.is_dir():
            shutil.rmtree(part)
        else:
            part.unlink(missing_ok=True)  # gone with a folder around it


def write_whole(path: Path, text: str) -> None:
    """Write a small file so that it is never seen half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)


def write_json(path: Path, content: Any) -> None:
    """The same with a JSON file for readers."""
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False))


def exchange(a: Path, b: Path) -> bool:
    """Have two folders change names at once; False where the system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return renameat2(here, os.fsencode(a.absolute()), here, os.fsencode(b.absolute()), exchange) == 0


def sync_tree(folder: Path) -> None:
    """Have all files of a folder, and the folders' own entries, on disk."""
    paths = sorted(folder.rglob("*"))
    for path in [*(p for p in paths if p.is_file()), *(p for p in paths if p.is_dir()), folder]:
        sync(path)


def sync(path: Path) -> None:
    """Have what was written at `path` on disk. Folders cannot be synced everywhere; files can."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # a folder on Windows
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def disk_was_full(error: BaseException | None) -> bool:
    """Whether space was the reason. Writers that are not Python's have words for it, and no number."""
    while error is not None:
        if getattr(error, "errno", None) in FULL or any(os.strerror(number) in str(error) for number in FULL):
            return True
        error = error.__cause__ or error.__context__
    return False
