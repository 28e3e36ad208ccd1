"""sha256 of files, read once: a file is known again by its path, size, modification time and inode."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from runner.store.durable import write_whole

CHUNK = 1 << 22  # bytes read at once


class Fingerprints:
    """Hashes remembered in the JSON file `cache`, which may vanish at any time: it only saves reading.

    A change that keeps size, time and inode goes unnoticed here; whoever must be sure asks with `fresh`.
    """

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._changed = False
        try:
            known = json.loads(cache.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = None
        self._known: dict[str, list[int | str]] = known if isinstance(known, dict) else {}

    def sha256(self, path: Path, fresh: bool = False) -> str:
        """The hash of a file, in hex; read from disk if it changed since, or if `fresh`. Raises OSError."""
        name, state = os.path.abspath(path), _state(path)
        known = self._known.get(name)
        if known is None or fresh or known[:-1] != state:
            self._known[name] = known = [*state, sha256(path)]
            self._changed = True
        return str(known[-1])

    def knows(self, path: Path) -> bool:
        """Whether `path` need not be read."""
        known = self._known.get(os.path.abspath(path))
        return known is not None and known[:-1] == _state(path)

    def moved(self, old: Path, new: Path) -> None:
        """A file that was hashed as `old` is `new` now; a rename changes neither its time nor its inode."""
        known = self._known.pop(os.path.abspath(old), None)
        if known is not None:
            self._known[os.path.abspath(new)] = known
            self._changed = True

    def save(self) -> None:
        """Keep what was learnt; a cache that cannot be written is done without."""
        if not self._changed:
            return
        try:
            write_whole(self._cache, json.dumps(self._known))
            self._changed = False
        except OSError:
            pass


def sha256(path: Path) -> str:
    """The hash of a file's content, in hex."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _state(path: Path) -> list[int | str]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino]
