"""`python -m runner prune [OUTPUT] [--yes]`: what the store holds and no run folder uses any more; with --yes it goes.

An artifact is used as long as a run folder has hard links to its files, wherever that folder was moved to, or, where it
holds copies, as long as it stands below OUTPUT. The draft of a run that was cut off saves its finished prompts for the
next run of the same command; it is listed when nobody is at work on it. Whatever a process is just making or linking
stays. Measurements are kept: they are small, and decisions may rest on them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from runner.config.faults import Fault, Refused
from runner.config.wording import plain, size
from runner.store.artifacts import AGAIN, MANIFEST, Store
from runner.store.locks import Held

ENTRY = re.compile(r".+-[0-9a-f]{16}")


@dataclass(frozen=True)
class Unused:
    """A folder of the store that may go: what it is, why nobody misses it, and the bytes that this would free."""

    path: Path
    kind: str
    why: str
    size: int


def unused(output: Path) -> list[Unused]:
    """What may go from the store of an output folder, largest first."""
    store = Store(output / ".store")
    copied = _copied(output)
    found = [
        Unused(path, "artifact", "no run folder links it", _size(path))
        for path in _folders(store.root)
        if ENTRY.fullmatch(path.name) and path.name not in copied and not _linked(path)
    ]
    for path in _folders(store.root / "drafts"):
        try:
            with store.alone(path.name.removesuffix(AGAIN)):
                found.append(Unused(path, "draft", "cut off, and nobody is at work on it", _size(path)))
        except (Held, OSError):  # OSError: a read-only store
            continue
    found += [Unused(p, "damaged", "altered, and made again", _size(p)) for p in _folders(store.root / "damaged")]
    found += [Unused(p, "leftover", "half removed", _size(p)) for p in _folders(store.root / "discarded")]
    return sorted(found, key=lambda item: (-item.size, item.path.name))


def remove(store: Store, item: Unused) -> bool:
    """Remove it, unless somebody has begun to use it; whether it is gone."""
    name = item.path.name.removesuffix(AGAIN)
    if item.kind in ("damaged", "leftover"):
        store.discard(item.path)
        return True
    try:
        with store.alone(name):
            if item.kind == "artifact" and _linked(item.path):
                return False
            store.discard(item.path)
            store.forget(name)
    except (Held, FileNotFoundError):
        return False
    return True


def main(arguments: Sequence[str]) -> int:
    """The command; its exit status. Raises Refused if there is no store."""
    parser = argparse.ArgumentParser(prog="runner prune", description=__doc__)
    parser.add_argument("output", nargs="?", default="outputs", type=Path, help="the output folder (default: outputs)")
    parser.add_argument("--yes", action="store_true", help="delete what is shown")
    asked = parser.parse_args(arguments)
    store = Store(asked.output / ".store")
    if not store.root.is_dir():
        raise Refused([Fault("prune", "expected an output folder with a .store in it", str(asked.output))])
    found = unused(asked.output)
    if not found:
        print(f"{store.root}: everything is used")
        return 0
    width = max(len(item.path.name) for item in found)
    freed = kept = 0
    for item in found:
        gone = asked.yes and remove(store, item)
        freed += item.size if gone else 0
        kept += asked.yes and not gone
        note = "   kept: in use by now" if asked.yes and not gone else ""
        print(f"  {item.kind:<8}  {item.path.name:<{width}}  {plain(size(item.size)):>8}  {item.why}{note}")
    if asked.yes:
        print(f"freed {plain(size(freed))}" + (f"; {kept} kept" if kept else ""))
    else:
        print(f"{plain(size(sum(item.size for item in found)))} in all; with --yes this is deleted")
    return 0


def _copied(output: Path) -> set[str]:
    """Artifacts of which a run folder below `output` has copies: the links of the others count for themselves."""
    found = set()
    for run in _runs(output):
        try:
            rows = json.loads((run / "plan.json").read_text(encoding="utf-8"))["stages"]
            keyed = [(run / row["stage"], f"{row['does']}-{row['key']}") for row in rows if row["key"]]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        found |= {name for folder, name in keyed if folder.is_dir() and not _linked(folder)}
    return found


def _runs(output: Path) -> Iterator[Path]:
    for folder, below, files in os.walk(output):
        if "run.json" in files:
            yield Path(folder)
            below.clear()
        elif ".store" in below:
            below.remove(".store")


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _files(folder: Path) -> Iterator[os.stat_result]:
    for path in folder.rglob("*"):
        try:
            if path.is_file() and path.name != MANIFEST:
                yield path.stat()
        except FileNotFoundError:
            continue


def _linked(folder: Path) -> bool:
    return any(file.st_nlink > 1 for file in _files(folder))


def _size(folder: Path) -> int:
    return sum(file.st_size for file in _files(folder) if file.st_nlink == 1)
