"""The exported files, as msModelSlim writes and MindIE-SD loads them: the only place that knows file and key names.

    quant_model_weight_w8a8[_RANK].safetensors      one flat dictionary of tensors
    quant_model_description_w8a8[_RANK].json        {"model_quant_type": "W8A8", KEY: "W8A8" | "FLOAT", ...}

A W8A8 linear L with weight [N, K] in a model of dtype dt has, under "L.":

    weight int8 [N, K]   weight_scale, weight_offset dt [N, 1]   input_scale, input_offset dt [1]   quant_bias int32 [N]
    deq_scale [N]: float32 if dt is bfloat16, else the float32 bit pattern in int64   bias dt [N], tagged FLOAT, if any

Every other parameter keeps its key and dtype, tagged FLOAT. Buffers are not exported.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

MODEL_TYPE = "model_quant_type"
W8A8, FLOAT = "W8A8", "FLOAT"
PARTS = (
    "weight",
    "bias",
    "weight_scale",
    "weight_offset",
    "input_scale",
    "input_offset",
    "quant_bias",
    "deq_scale",
)
MODE = 0o640  # MindIE-SD refuses anything more open

Tensors = dict[str, Tensor]
Description = dict[str, str]


def assemble(entries: Iterable[tuple[str, Tensor | Mapping[str, Tensor]]]) -> tuple[Tensors, Description]:
    """Tensors and description of a W8A8 model from its parameters (name, tensor) and layers (name, parts), in order."""
    tensors: Tensors = {}
    description: Description = {MODEL_TYPE: W8A8}
    for name, entry in entries:
        if isinstance(entry, Tensor):
            tensors[name], description[name] = entry, FLOAT
            continue
        for part in PARTS:
            if part in entry:
                tensors[f"{name}.{part}"] = entry[part]
                description[f"{name}.{part}"] = FLOAT if part == "bias" else W8A8
    return tensors, description


def take_apart(
    tensors: Mapping[str, Tensor], description: Mapping[str, str]
) -> tuple[dict[str, dict[str, Tensor]], Tensors]:
    """The inverse of `assemble`: layers {name: parts} and all other parameters.

    Raises ValueError, with every problem, for keys without tensors and the reverse, unknown types, and layers with
    missing parts or parts of the wrong dtype or shape.
    """
    model_type = description.get(MODEL_TYPE)
    if model_type != W8A8:
        raise ValueError(f"{MODEL_TYPE} is {model_type!r}; only {W8A8} is read here")
    keys = [key for key in description if key != MODEL_TYPE]
    problems = [f"{key}: unknown type {description[key]!r}" for key in keys if description[key] not in (W8A8, FLOAT)]
    problems += [f"{key}: described, but there is no such tensor" for key in keys if key not in tensors]
    problems += [f"{key}: a tensor that the description does not have" for key in tensors if key not in description]
    if problems:
        raise ValueError(_report(problems))

    layers: dict[str, dict[str, Tensor]] = {}
    for key in keys:
        if description[key] == W8A8:
            layers.setdefault(key.rpartition(".")[0], {})
    floats: Tensors = {}
    for key in keys:
        layer, _, part = key.rpartition(".")
        if layer in layers:
            layers[layer][part] = tensors[key]
        else:
            floats[key] = tensors[key]
    problems = [problem for layer, parts in layers.items() for problem in _misfits(layer, parts)]
    if problems:
        raise ValueError(_report(problems))
    return layers, floats


def _misfits(layer: str, parts: Mapping[str, Tensor]) -> list[str]:
    """What is wrong with the parts of one W8A8 linear."""
    missing = [part for part in PARTS if part not in parts and part != "bias"]
    unknown = [part for part in parts if part not in PARTS]
    if missing or unknown or parts["weight"].dim() != 2:
        words = [f"lacks {', '.join(missing)}"] if missing else []
        words += [f"has unknown {', '.join(unknown)}"] if unknown else []
        return [f"{layer}: {'; '.join(words) or 'weight is not a matrix'}"]
    n, k = parts["weight"].shape
    dtype = parts["input_scale"].dtype
    wanted: dict[str, tuple[set[torch.dtype], tuple[int, ...]]] = {
        "weight": ({torch.int8}, (n, k)),
        "bias": ({dtype}, (n,)),
        "weight_scale": ({dtype}, (n, 1)),
        "weight_offset": ({dtype}, (n, 1)),
        "input_scale": ({torch.float32, torch.bfloat16, torch.float16}, (1,)),
        "input_offset": ({dtype}, (1,)),
        "quant_bias": ({torch.int32}, (n,)),
        "deq_scale": ({torch.float32, torch.int64}, (n,)),
    }
    problems = []
    for part, tensor in parts.items():
        dtypes, shape = wanted[part]
        if tensor.dtype not in dtypes or tuple(tensor.shape) != shape:
            want = " or ".join(sorted(str(d).removeprefix("torch.") for d in dtypes))
            got = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
            problems.append(f"{layer}.{part}: {got}, must be {want} {list(shape)}")
    return problems


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
