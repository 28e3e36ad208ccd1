"""Whether a folder holds a model's transformer, as far as config.json and the names of files tell. No torch: the desk
asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from . import object_file


def faults(
    folder: Path,
    classes: Sequence[str],
    weights: str,
    has_weights: Callable[[Path], bool],
    keys: Sequence[str] = ("_class_name",),
) -> Iterator[str]:
    """Why `folder` is none, in sentences.

    The first of `keys` that its config.json has must name one of `classes`; a config without any is taken for one.
    `weights` says which files are expected, and `has_weights` whether they are there.
    """
    config = folder / "config.json"
    if not config.is_file():
        yield f"{folder} has no config.json: expected the folder that holds the transformer's config.json and weights"
        return
    try:
        content = object_file.read(config)
    except ValueError as error:
        yield str(error)
        return
    name = next((content[key] for key in keys if content.get(key)), classes[0])
    if name not in classes:
        yield f"{config} describes a {name}: expected {' or '.join(classes)}"
    if not has_weights(folder):
        yield f"{folder} has no weights: expected {weights}"
