"""The folder of a diffusers pipeline: its model_index.json, its parts, its scheduler. No torch: the desk asks, too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

INDEX = "model_index.json"
LIBRARIES = ("diffusers", "transformers")  # whose classes parts may be; code that lies in a folder is not run
SCHEDULER_FILE = "scheduler_config.json"


def read(file: Path) -> dict[str, Any]:
    """The keys of a JSON file; ValueError, naming it, where it cannot be read or holds something else."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds no keys")
    return found


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
