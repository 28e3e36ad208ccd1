"""Values out of JSON that may be missing, half written or of another version: asked for, and never raised over."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Reader:
    """Reads JSON from a run folder and remembers what it could not read."""

    folder: Path
    gaps: list[str] = field(default_factory=list)

    def mapping(self, path: str, expected: bool) -> dict[str, Any]:
        value = self._json(path, expected)
        return value if isinstance(value, dict) else {}

    def rows(self, path: str, expected: bool) -> list[dict[str, Any]]:
        return rows(self._json(path, expected))

    def _json(self, path: str, expected: bool) -> Any:
        try:
            return json.loads((self.folder / path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            if expected:
                self.gaps.append(f"{path} is not there.")
        except (OSError, ValueError) as error:
            self.gaps.append(f"{path} cannot be read: {error}.")
        return None


def pick(mapping: Any, *keys: str) -> Any:
    """mapping[k1][k2]..., or None where any of them is missing."""
    for key in keys:
        mapping = mapping.get(key) if isinstance(mapping, Mapping) else None
    return mapping


def number(mapping: Any, *keys: str) -> float | None:
    """`pick` where it is a finite number; the median where it is a spread of measurements; else None."""
    value = pick(mapping, *keys)
    if isinstance(value, Mapping):
        value = value.get("median")
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def rows(value: Any) -> list[dict[str, Any]]:
    return [row for row in items(value) if isinstance(row, dict)]
