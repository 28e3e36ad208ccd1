"""What a plan says beside its table, before anything runs: weights of another commit."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from runner.model.checkpoints import PARTS
from runner.store.fingerprints import Fingerprints

COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")
RECORDS = Path(".cache/huggingface/download")  # what a download into a folder leaves there: by file its commit and hash


def notes(config: Mapping[str, Any], fingerprints: Fingerprints) -> Iterator[str]:
    """Sentences for a checked configuration; none for one whose weights are the guide's, as far as is known."""
    model = config["model"]
    for part in ("checkpoint", *PARTS):
        if pin := model.get(f"{part}_pin"):
            yield from _pinned(f"model.{part}", model[part], pin, fingerprints)


def _pinned(key: str, place: str | None, pin: str, fingerprints: Fingerprints) -> Iterator[str]:
    """Where the folder `place` is known to be of another commit than `pin`, or a file of it was altered since."""
    if place is None or not (folder := Path(place)).is_absolute():
        return
    found: set[str] = set()
    for at in (folder, folder.parent):  # a part may be a folder of its repository
        records = at / RECORDS / folder.relative_to(at)
        for record in sorted(records.glob("*.metadata")):
            commit, etag, *_ = [*record.read_text(encoding="utf-8").split("\n"), "", ""]
            found |= set(COMMIT.fullmatch(commit.strip()) and [commit.strip()] or [])
            file = folder / record.name.removesuffix(".metadata")
            if SHA256.fullmatch(etag.strip()) and file.is_file() and fingerprints.sha256(file) != etag.strip():
                yield f"{key}: {file} is not what was downloaded, by its sha256"
    # The hub's own cache has the commit in the path.
    found |= {name for before, name in zip(folder.parts, folder.parts[1:], strict=False) if before == "snapshots"}
    for commit in sorted(found - {pin}):
        yield f"{key}: {folder} is at commit {commit} of its repository, and the guide has {pin}"
