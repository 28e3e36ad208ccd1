"""What weight files say of themselves: the names and shapes of their tensors, without reading one. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from .object_file import read

INDEX = ".safetensors.index.json"
WEIGHTS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth")


def tensors(file: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a safetensors file. Raises OSError, or ValueError where it is no such file."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length >= size:
            raise ValueError(f"{file} is no safetensors file")
        head = json.loads(stream.read(length))
    try:
        return {name: tuple(tensor["shape"]) for name, tensor in head.items() if name != "__metadata__"}
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no safetensors file: {error}") from error


def sizes(file: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of each tensor in a file of weights; of another kind than safetensors, or of a damaged one, its
    size in float32."""
    if file.suffix not in WEIGHTS:
        return
    try:
        found = tensors(file) if file.suffix == ".safetensors" else {}
    except (OSError, ValueError):
        found = {}  # whoever loads it will say what is wrong
    yield from found.items() or [("", (file.stat().st_size // 4,))]


def names(folder: Path) -> set[str]:
    """The tensors that the safetensors of a folder hold, whole or in shards with an index. Raises as above."""
    shards = sorted(folder.glob(f"*{INDEX}"))
    return {name for index in shards for name in read(index).get("weight_map", {})} or {
        name for file in sorted(folder.glob("*.safetensors")) for name in tensors(file)
    }


def lists(folder: Path) -> dict[str, int]:
    """The lists of modules right under the model of a folder that have weights: how many modules each has."""
    found: dict[str, set[str]] = {}
    for parts in _paths(names(folder)):
        if len(parts) > 2 and parts[1].isdecimal():
            found.setdefault(parts[0], set()).add(parts[1])
    return {name: len(entries) for name, entries in found.items()}


def _paths(names: set[str]) -> Iterator[list[str]]:
    return (name.split(".") for name in names)
