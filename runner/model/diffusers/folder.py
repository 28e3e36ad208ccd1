"""The folder of a diffusers pipeline: its model_index.json, its parts, its scheduler. No torch: the desk asks, too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runner.model.object_file import read

INDEX = "model_index.json"
LIBRARIES = ("diffusers", "transformers")  # whose classes parts may be; code that lies in a folder is not run
SCHEDULER_FILE = "scheduler_config.json"


def snapshot(name: str, revision: str) -> Path | None:
    """The folder of a hub id, `owner/repository`, at a revision in the hub's cache on this machine; None without it."""
    from huggingface_hub import snapshot_download  # slow to import, and hub ids are rare

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (OSError, ValueError):
        return None


def index(folder: Path) -> dict[str, Any]:
    """model_index.json. Raises ValueError where there is none that can be read."""
    return read(folder / INDEX)


def parts(folder: Path) -> dict[str, tuple[str, str]]:
    """Library and class of each part that the pipeline has, by name."""
    return {name: entry for name, entry in _entries(index(folder)) if all(entry)}


def _entries(index: dict[str, Any]) -> Iterator[tuple[str, tuple[str, str]]]:
    for name, entry in index.items():
        if isinstance(entry, list) and len(entry) == 2:
            yield name, (entry[0], entry[1])


def sample_method(folder: Path) -> str | None:
    """The solver of the folder, by its class name without "Scheduler"; None where it does not say."""
    try:
        name = read(folder / "scheduler" / SCHEDULER_FILE).get("_class_name") or parts(folder)["scheduler"][1]
    except (ValueError, KeyError):
        return None
    return str(name).removesuffix("Scheduler")
