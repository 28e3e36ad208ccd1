"""An artifact under its key: draft, commit, find, link.

    .store/<stage>-<key>/            the files of one finished stage, and manifest.json with their sizes and hashes
    .store/drafts/<stage>-<key>/     what a stage has written so far; it appears above by one rename, whole
    .store/damaged/                  entries that were found altered, moved out of the way
    .store/verified/                 which files were hashed in which state, so that they are not read again
    .store/lineage/                  what went into each key
    .store/measurements/<machine>/   times and memory: never part of an artifact

A stage finishes long work in parts (a prompt's folder, written under a name that ends in .part and then renamed); a
draft outlives a crash, so its finished parts are there when the stage runs again. An entry has one writer at a time.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.desk import machine
from runner.desk.fingerprints import Fingerprints, write_whole

FORMAT = 1  # of manifest.json
MANIFEST = "manifest.json"
NOT_STORED = "not stored yet"
UNFINISHED = ".part"


@dataclass(frozen=True)
class Entry:
    """A committed artifact: its folder, and its files by relative path."""

    stage: str
    key: str
    path: Path
    files: tuple[str, ...]


class Store:
    """The artifacts below one folder. Nothing is written before something is asked to be."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def find(self, stage: str, key: str, thorough: bool = False) -> Entry | None:
        """The whole artifact under this key, None if there is none or it is damaged."""
        return self.inspect(stage, key, thorough)[0]

    def inspect(self, stage: str, key: str, thorough: bool = False) -> tuple[Entry | None, str]:
        """The artifact under this key if it is whole, and in words what was found.

        A file whose size, time and inode are those of the last time is taken for unaltered, so that a reuse does not
        read gigabytes; any other file is hashed and compared. `thorough` hashes all.
        """
        path = self._entry(stage, key)
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None, "its stored files lost their manifest" if path.exists() else NOT_STORED
        except ValueError:
            return None, "its stored manifest is damaged"
        seen = Fingerprints(self._verified(stage, key))
        for name, recorded in manifest["files"].items():
            file = path / name
            try:
                if file.stat().st_size != recorded["size"]:
                    return None, f"stored {name} has {file.stat().st_size} bytes instead of {recorded['size']}"
                if seen.sha256(file, thorough) != recorded["sha256"]:
                    return None, f"stored {name} was altered"
            except FileNotFoundError:
                return None, f"stored {name} is gone"
        seen.save()
        return Entry(stage, key, path, tuple(manifest["files"])), "stored and whole"

    def draft(self, stage: str, key: str) -> Path:
        """The folder to write an artifact into: empty, or with the finished parts of a run that was cut off."""
        folder = self.root / "drafts" / f"{stage}-{key}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def commit(self, draft: Path, stage: str, key: str) -> Entry:
        """Make a finished draft the artifact under its key: hashed, on disk, and there by one rename.

        Unfinished parts are left out. A damaged artifact that stood there is moved aside; a whole one stays, and the
        draft goes.
        """
        for part in [path for path in _walk(draft) if path.name.endswith(UNFINISHED)]:
            if part.is_dir():
                shutil.rmtree(part)
            else:
                part.unlink(missing_ok=True)  # gone with a folder around it
        (draft / MANIFEST).unlink(missing_ok=True)  # of a commit that was cut off
        seen = Fingerprints(self._verified(stage, key))
        files = {}
        for file in sorted(path for path in _walk(draft) if path.is_file()):
            _sync(file)
            name = file.relative_to(draft).as_posix()
            files[name] = {"size": file.stat().st_size, "sha256": seen.sha256(file)}
        manifest = {"format": FORMAT, "stage": stage, "key": key, "files": files}
        (draft / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        _sync(draft / MANIFEST)
        for folder in [*(path for path in _walk(draft) if path.is_dir()), draft]:
            _sync(folder)

        path = self._entry(stage, key)
        if path.exists():
            if entry := self.find(stage, key):
                shutil.rmtree(draft)
                return entry
            aside = self.root / "damaged" / f"{path.name}-{time.time_ns()}"
            aside.parent.mkdir(exist_ok=True)
            os.rename(path, aside)
        os.rename(draft, path)
        _sync(self.root)
        self._verified(stage, key).unlink(missing_ok=True)
        for name in files:
            seen.moved(draft / name, path / name)
        seen.save()
        return Entry(stage, key, path, tuple(files))

    def link(self, entry: Entry, run: Path, name: str | None = None) -> Path:
        """Put the artifact into the run folder as `run`/<name>, by hard links where they are possible, else copied.

        `name` is the stage's unless something else is said."""
        name = name or entry.stage
        target, draft = run / name, run / f".{name}{UNFINISHED}"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        for file in entry.files:
            (draft / file).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(entry.path / file, draft / file)
            except OSError:  # another file system, or one without hard links
                shutil.copy2(entry.path / file, draft / file)
        shutil.rmtree(target, ignore_errors=True)
        os.rename(draft, target)
        return target

    def write_measurements(self, stage: str, key: str, measured: Mapping[str, Any]) -> None:
        """Keep what this machine measured while it made an artifact."""
        write_whole(self._measurements(stage, key), json.dumps(measured, indent=2))

    def link_measurements(self, stage: str, key: str, run: Path, name: str | None = None) -> Path | None:
        """Copy what this machine measured into the run folder as measurements/<name>.json; None if it never did."""
        source = self._measurements(stage, key)
        if not source.is_file():
            return None
        target = run / "measurements" / f"{name or stage}.json"
        write_whole(target, source.read_text(encoding="utf-8"))
        return target

    @property
    def lineages(self) -> Path:
        """The folder of what went into each key: <stage>-<key>.json."""
        return self.root / "lineage"

    def write_lineage(self, stage: str, key: str, lineage: Mapping[str, Any]) -> None:
        """Keep what went into a key."""
        write_whole(self.lineages / f"{stage}-{key}.json", json.dumps(lineage, indent=2, ensure_ascii=False))

    def _entry(self, stage: str, key: str) -> Path:
        return self.root / f"{stage}-{key}"

    def _verified(self, stage: str, key: str) -> Path:
        return self.root / "verified" / f"{stage}-{key}.json"

    def _measurements(self, stage: str, key: str) -> Path:
        return self.root / "measurements" / machine.identity() / f"{stage}-{key}.json"


def _walk(folder: Path) -> Iterator[Path]:
    return folder.rglob("*")


def _sync(path: Path) -> None:
    """Have what was written at `path` on disk. Folders cannot be synced everywhere; files can."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # a folder on Windows
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
