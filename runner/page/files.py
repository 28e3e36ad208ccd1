"""The files of a run folder: how many, how large, and how to list them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Entry:
    """A file, or a folder with what is in it: `size` in bytes and number of `files`, both over everything below."""

    name: str
    path: str
    size: int
    files: int
    entries: Sequence["Entry"] | None = None


def png_size(path: Path) -> tuple[int, int] | None:
    """Width and height from a PNG's header, so that the page can keep its place before it has loaded."""
    try:
        with path.open("rb") as file:
            head = file.read(24)
    except OSError:
        return None
    if len(head) < 24 or head[:8] != b"\x89PNG\r\n\x1a\n":
        return None
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


def tree(folder: Path, root: Path | None = None) -> Entry:
    """All files below a folder, folders first, each by name; links to elsewhere are listed and not followed."""
    root = root or folder
    entries = []
    for path in sorted(folder.iterdir(), key=lambda p: (not p.is_dir(), p.name)):
        if path.is_dir() and not path.is_symlink():
            entries.append(tree(path, root))
        elif path.name != "report.html" and not path.name.startswith("."):
            size = path.lstat().st_size
            entries.append(Entry(path.name, path.relative_to(root).as_posix(), size, files=1))
    size, files = sum(entry.size for entry in entries), sum(entry.files for entry in entries)
    return Entry(folder.name, folder.relative_to(root).as_posix(), size, files, entries)
