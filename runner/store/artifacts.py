"""An artifact under its key: draft, commit, find, link.

    .store/<stage>-<key>/            the files of one finished stage, and manifest.json with their sizes and hashes
    .store/drafts/<stage>-<key>/     what a stage has written so far; it appears above by one rename, whole
    .store/damaged/                  entries that were found altered, moved out of the way
    .store/discarded/                what is being removed
    .store/locks/<stage>-<key>       who makes this artifact; the others wait and take what it made
    .store/verified/                 which files were hashed in which state, so that they are not read again
    .store/lineage/                  what went into each key
    .store/measurements/<machine>/   times and memory: never part of an artifact

A stage finishes long work in parts (a prompt's folder, written under a name that ends in .part and then renamed); a
draft outlives a crash, so its finished parts are there when the stage runs again. Those in its folder `trials` serve
nothing else, and are no part of the artifact. An entry has one writer at a time. Files of a draft that lie in no folder
are written last, so those of a run that was cut off are not kept.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.config.faults import Fault, Refused
from runner.store import machine
from runner.store.durable import (
    TRIALS,
    UNFINISHED,
    disk_was_full,
    drop_unfinished,
    exchange,
    sync,
    sync_tree,
    write_json,
    write_whole,
)
from runner.store.fingerprints import Fingerprints
from runner.store.locks import Held, lock

FORMAT = 1  # of manifest.json; what has a newer one is not made again over it
MANIFEST = "manifest.json"
NOT_STORED = "not stored yet"
AGAIN = "-again"  # of the draft of what is stored and made again


@dataclass(frozen=True)
class Entry:
    """A committed artifact: its folder, its files by relative path, and when it was committed (seconds since 1970)."""

    stage: str
    key: str
    path: Path
    files: tuple[str, ...]
    made: float = 0.0


class StoreFull(OSError):
    """No space was left while an artifact was made. What was finished of it is kept."""


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
        read gigabytes; any other file is hashed and compared. `thorough` hashes all. Raises Refused for an entry that a
        newer version wrote: it is neither read wrongly nor made again over it.
        """
        path = self._entry(stage, key)
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            written, recorded_files = manifest["format"], manifest["files"]
            made = _made(path)
        except FileNotFoundError:
            return None, "its stored files lost their manifest" if path.exists() else NOT_STORED
        except (ValueError, KeyError, TypeError):
            return None, "its stored manifest is damaged"
        if written > FORMAT:
            expected = (
                f"a store that this version reads: {path} has a manifest of format {written}, newer than {FORMAT}"
            )
            raise Refused([Fault("output", f"expected {expected}; update the runner, or take another output folder")])
        seen = Fingerprints(self._verified(stage, key))
        for name, recorded in recorded_files.items():
            file = path / name
            try:
                if file.stat().st_size != recorded["size"]:
                    return None, f"stored {name} has {file.stat().st_size} bytes instead of {recorded['size']}"
                if seen.sha256(file, thorough) != recorded["sha256"]:
                    return None, f"stored {name} was altered"
            except FileNotFoundError:
                return None, f"stored {name} is gone"
        seen.save()
        return Entry(stage, key, path, tuple(recorded_files), made), "stored and whole"

    @contextmanager
    def claim(
        self, stage: str, key: str, owner: str, waiting: Callable[[str], None], redo: float | None = None
    ) -> Iterator[Entry | None]:
        """The whole artifact under this key, for as long as nobody may remove it; or None, and then it is the caller's
        to make, and nobody else's, until the claim ends.

        Somebody else who makes it is waited for; `waiting` is told who. `owner` is what others are told. An artifact
        older than `redo` (seconds since 1970) is to be made again. Raises StoreFull if the disk got full meanwhile.
        """

        def found() -> Entry | None:
            entry = self.find(stage, key)
            return None if entry and redo is not None and entry.made < redo else entry

        with lock(self._lock(stage, key), owner, shared=True, waiting=waiting):
            if entry := found():
                yield entry
                return
        with lock(self._lock(stage, key), owner, waiting=waiting):
            try:
                yield found()  # perhaps another one has made it since
            except BaseException as error:
                self._drop_unfinished(f"{stage}-{key}")  # so that there is space to write the failure down
                if not disk_was_full(error):
                    raise
                raise StoreFull(
                    f"the disk is full ({error}). Finished parts are kept: make room (`python -m runner prune "
                    f"{self.root.parent}` shows what no run uses any more) and type the same command again"
                ) from error

    def tidy(self, name: str) -> None:
        """Remove what somebody who was killed left unfinished of the artifact <stage>-<key>, unless another is at work
        on it. Finished parts stay."""
        if any(draft.exists() for draft in self._drafts(name)):
            with suppress(Held, OSError), self.alone(name):
                self._drop_unfinished(name)

    def writable(self) -> OSError | None:
        """Why nothing can be stored here; None if something can."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root):
                return None
        except OSError as error:
            return error

    def begun(self, stage: str, key: str) -> Path:
        """Where the parts of an artifact are that a run has finished and not yet committed, if there are any."""
        return self._draft(stage, key, redo=False)

    def draft(self, stage: str, key: str, redo: bool = False) -> Path:
        """The folder to write an artifact into: empty, or with the finished parts of a run that was cut off.

        One that is made again although it was stored has a draft of its own.
        """
        folder = self._draft(stage, key, redo)
        if redo and _made(folder) and _made(folder) <= _made(self._entry(stage, key)):
            self.discard(folder)  # the artifact that a commit has replaced, and had no time to remove
        folder.mkdir(parents=True, exist_ok=True)
        for file in [path for path in folder.iterdir() if not path.is_dir()]:
            file.unlink()
        return folder

    def commit(self, draft: Path, stage: str, key: str) -> Entry:
        """Make a finished draft the artifact under its key: hashed, on disk, and there by one rename.

        Unfinished parts and trials are left out; trials are removed last, when nothing can be lost any more. A damaged
        artifact that stood there is moved aside. A whole one stays and the draft goes, unless the draft is a redone
        one: then both change places, so that there is a whole one at any moment, and run folders keep the files that
        they link.
        """
        drop_unfinished(draft)
        (draft / MANIFEST).unlink(missing_ok=True)  # of a commit that was cut off
        sync_tree(draft)
        seen = Fingerprints(self._verified(stage, key))
        files = {}
        for file in sorted(path for path in draft.rglob("*") if path.is_file()):
            name = file.relative_to(draft).as_posix()
            if name.startswith(f"{TRIALS}/"):
                continue
            files[name] = {"size": file.stat().st_size, "sha256": seen.sha256(file)}
        manifest = {"format": FORMAT, "stage": stage, "key": key, "files": files}
        (draft / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        sync(draft / MANIFEST)
        sync(draft)

        path = self._entry(stage, key)
        entry = self.find(stage, key)
        if entry and draft != self._draft(stage, key, redo=True):
            self.discard(draft)
            return entry
        if entry and exchange(draft, path):
            self.discard(draft)
        else:
            aside = self._move_aside(path, "discarded" if entry else "damaged") if path.exists() else None
            os.rename(draft, path)
            if entry and aside:
                shutil.rmtree(aside)
        sync(self.root)
        shutil.rmtree(path / TRIALS, ignore_errors=True)
        self._verified(stage, key).unlink(missing_ok=True)
        for name in files:
            seen.moved(draft / name, path / name)
        seen.save()
        return Entry(stage, key, path, tuple(files), _made(path))

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
        write_json(self._measurements(stage, key), measured)

    def measured(self, stage: str, key: str) -> dict[str, Any] | None:
        """What this machine measured while it made an artifact; None if it never did."""
        try:
            return json.loads(self._measurements(stage, key).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

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
        write_json(self.lineages / f"{stage}-{key}.json", lineage)

    def alone(self, name: str) -> AbstractContextManager[None]:
        """Keep everybody from the artifact <stage>-<key>. Raises Held if somebody makes it or links it just now."""
        return lock(self.root / "locks" / name, "prune")

    def discard(self, folder: Path) -> None:
        """Remove a folder so that half of it never stands under its name."""
        shutil.rmtree(self._move_aside(folder, "discarded"))

    def forget(self, name: str) -> None:
        """Remove what is known of an artifact <stage>-<key> that is gone, but for its measurements. To be called by who
        is alone with it."""
        if (self.root / name).exists() or any(draft.exists() for draft in self._drafts(name)):
            return
        for file in (self.root / "verified" / f"{name}.json", self.lineages / f"{name}.json"):
            file.unlink(missing_ok=True)
        (self.root / "locks" / name).unlink(missing_ok=True)

    def _drop_unfinished(self, name: str) -> None:
        for draft in self._drafts(name):
            drop_unfinished(draft)

    def _drafts(self, name: str) -> tuple[Path, Path]:
        return self.root / "drafts" / name, self.root / "drafts" / (name + AGAIN)

    def _move_aside(self, folder: Path, why: str) -> Path:
        aside = self.root / why / f"{folder.name}-{time.time_ns()}"
        aside.parent.mkdir(exist_ok=True)
        os.rename(folder, aside)
        return aside

    def _entry(self, stage: str, key: str) -> Path:
        return self.root / f"{stage}-{key}"

    def _draft(self, stage: str, key: str, redo: bool) -> Path:
        return self._drafts(f"{stage}-{key}")[redo]

    def _lock(self, stage: str, key: str) -> Path:
        return self.root / "locks" / f"{stage}-{key}"

    def _verified(self, stage: str, key: str) -> Path:
        return self.root / "verified" / f"{stage}-{key}.json"

    def _measurements(self, stage: str, key: str) -> Path:
        return self.root / "measurements" / machine.identity() / f"{stage}-{key}.json"


def _made(folder: Path) -> float:
    """When the manifest in a folder was written, 0 if there is none."""
    try:
        return (folder / MANIFEST).stat().st_mtime
    except FileNotFoundError:
        return 0.0
