"""A JSON file of keys, such as a checkpoint's config.json. No torch: the desk reads them, too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read(file: Path) -> dict[str, Any]:
    """The keys of a JSON file; ValueError, naming it, where it cannot be read or holds something else."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds no JSON object")
    return found
