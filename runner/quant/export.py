"""The exported files, as msModelSlim writes and MindIE-SD loads them: the only place that knows file and key names.

    quant_model_weight_w8a8[_RANK].safetensors      one flat dictionary of tensors
    quant_model_description_w8a8[_RANK].json        {"model_quant_type": "W8A8", KEY: "W8A8" | "FLOAT", ...}

A quantized linear L has its parts under "L.", each key tagged by the layer's scheme, which has the table of them
(PARTS); layers of several schemes may stand in one file, and the model's type then names the files alone. Every other
parameter keeps its key and dtype, tagged FLOAT. Buffers are not exported.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from runner.quant import rules, tagged
from runner.quant.parts import misfits

MODEL_TYPE = "model_quant_type"
FLOAT = "FLOAT"
MODE = 0o640  # MindIE-SD refuses anything more open

Tensors = dict[str, Tensor]
Description = dict[str, str]


class Layer(NamedTuple):
    """A quantized linear: the tag of its scheme, and its tensors by the names of their parts."""

    tag: str
    parts: Mapping[str, Tensor]


def assemble(model_type: str, entries: Iterable[tuple[str, Tensor | Layer]]) -> tuple[Tensors, Description]:
    """Tensors and description of a model from its parameters (name, tensor) and layers (name, layer), in order."""
    tensors: Tensors = {}
    description: Description = {MODEL_TYPE: model_type}
    for name, entry in entries:
        if isinstance(entry, Tensor):
            tensors[name], description[name] = entry, FLOAT
            continue
        for part, rule in tagged(entry.tag).PARTS.items():
            if part in entry.parts:
                tensors[f"{name}.{part}"] = entry.parts[part]
                description[f"{name}.{part}"] = FLOAT if rule.is_float else entry.tag
    return tensors, description


def take_apart(tensors: Mapping[str, Tensor], description: Mapping[str, str]) -> tuple[dict[str, Layer], Tensors]:
    """The inverse of `assemble`: layers by name, and all other parameters.

    Raises ValueError, with every problem, for keys without tensors and the reverse, unknown tags, layers of two tags,
    and layers with missing parts or parts of the wrong dtype or shape.
    """
    tags = rules.tags()
    if (model_type := description.get(MODEL_TYPE)) not in tags:
        raise ValueError(f"{MODEL_TYPE} is {model_type!r}; only {' or '.join(tags)} is read here")
    keys = [key for key in description if key != MODEL_TYPE]
    problems = [f"{key}: unknown type {description[key]!r}" for key in keys if description[key] not in (*tags, FLOAT)]
    problems += [f"{key}: described, but there is no such tensor" for key in keys if key not in tensors]
    problems += [f"{key}: a tensor that the description does not have" for key in tensors if key not in description]
    if problems:
        raise ValueError(_report(problems))

    tag_of: dict[str, str] = {}
    for key in keys:
        layer, tag = key.rpartition(".")[0], description[key]
        if tag != FLOAT and tag_of.setdefault(layer, tag) != tag:
            problems.append(f"{key}: tagged {tag}, beside {tag_of[layer]} of the same layer")
    parts: dict[str, Tensors] = {layer: {} for layer in tag_of}
    floats: Tensors = {}
    for key in keys:
        layer, _, part = key.rpartition(".")
        if layer in parts:
            parts[layer][part] = tensors[key]
        else:
            floats[key] = tensors[key]
    for layer, tag in tag_of.items():
        problems += misfits(layer, parts[layer], tagged(tag).PARTS)
    if problems:
        raise ValueError(_report(problems))
    return {layer: Layer(tag, parts[layer]) for layer, tag in tag_of.items()}, floats


def save(folder: Path, tensors: Mapping[str, Tensor], description: Mapping[str, str], rank: int | None = None) -> Path:
    """Write both files into `folder` and return the description's path.

    Each file appears whole or not at all, mode 0640, in place of whatever (a link too) had its name; the same tensors
    give the same bytes. ValueError where tensors and description do not belong together.
    """
    take_apart(tensors, description)
    weights, json_file = _names(description[MODEL_TYPE], "" if rank is None else f"_{rank}")
    folder.mkdir(parents=True, exist_ok=True)
    whole = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    _replace(folder / weights, lambda draft: save_file(whole, draft))
    # Last, since a description promises that the weights are there.
    _replace(folder / json_file, lambda draft: draft.write_text(json.dumps(dict(description), indent=2)))
    return folder / json_file


def load(path: Path) -> tuple[Tensors, Description]:
    """Read an export: `path` is its description, or a folder that holds one. Tensors are mapped from the file.

    FileNotFoundError where a file is missing; ValueError where the files contradict each other or the format.
    """
    file = _find_description(path)
    try:
        description = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not a description ({error})") from error
    if not isinstance(description, dict) or not all(isinstance(value, str) for value in description.values()):
        raise ValueError(f"{file}: a description is one flat object of strings")
    if MODEL_TYPE not in description:
        raise ValueError(f"{file}: has no {MODEL_TYPE}")
    rank = re.search(r"_\d+$", file.stem)
    weights = file.with_name(_names(description[MODEL_TYPE], rank[0] if rank else "")[0])
    if not weights.is_file():
        raise FileNotFoundError(f"{weights}: missing; {file.name} describes it")
    try:
        with safe_open(weights, framework="pt") as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise ValueError(f"{weights}: not a whole safetensors file ({error})") from error
    try:
        take_apart(tensors, description)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    return tensors, description


def _names(model_type: str, suffix: str) -> tuple[str, str]:
    stem = f"{model_type.lower()}{suffix}"
    return f"quant_model_weight_{stem}.safetensors", f"quant_model_description_{stem}.json"


def _find_description(path: Path) -> Path:
    if path.is_file():
        if path.suffix != ".json":
            raise ValueError(f"{path}: name the description (.json) or its folder")
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such file or folder")
    found = sorted(path.glob("quant_model_description_*.json"))
    # What is named by rank besides is the same once more.
    found = [file for file in found if not re.search(r"_\d+$", file.stem)] or found
    if not found:
        raise FileNotFoundError(f"{path}: holds no quant_model_description_*.json")
    if len(found) > 1:
        raise ValueError(f"{path}: holds {len(found)} descriptions; name one of {', '.join(f.name for f in found)}")
    return found[0]


def _replace(file: Path, write: Callable[[Path], object]) -> None:
    """Write a draft beside `file`, then give it its mode and its name."""
    handle, name = tempfile.mkstemp(prefix=".draft-", suffix=file.suffix, dir=file.parent)
    os.close(handle)
    draft = Path(name)
    try:
        write(draft)
        draft.chmod(MODE)
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)


def _report(problems: list[str]) -> str:
    more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
    return f"{'; '.join(problems[:8])}{more}"
