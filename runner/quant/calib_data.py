"""The calib_data[_rank].pth lists that msModelSlim's users know: written from a recording, or read instead of one.

A record is one call of the transformer: a list in the order of its signature, defaults included (tag "args"), or a
dictionary with "args" and "timestep_idx" (tag "timestep").
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from runner.model.arguments import flatten, moved
from runner.recording.recording import Recording, write_call
from runner.recording.statistics import LinearStatistics
from runner.store.durable import finish, unfinished


def write_calib_data(
    recording: Recording,
    transformer: nn.Module,
    file: Path,
    *,
    timesteps: bool = False,
    dtype: torch.dtype | None = None,
) -> None:
    """Write every recorded call of the calibration prompts to `file`, in the order in which they were made.

    With `dtype`, latents and embeddings are cast to it: that of the weights, where something else was computed in.
    Scalars of a sample (timesteps, sizes) stay as they were.
    """
    signature = inspect.signature(type(transformer).forward)
    records: list[Any] = []
    for part in recording.parts("calibration"):
        for step, call in enumerate(recording.calls(part)):
            if dtype is not None:
                call = {name: moved(value, "cpu", dtype) if _is_wide(value) else value for name, value in call.items()}
            bound = signature.bind(transformer, **call)
            bound.apply_defaults()
            args = list(bound.args[1:])
            records.append(
                {"tag": "timestep", "timestep_idx": step, "module_name": "", "args": args, "kwargs": {}}
                if timesteps
                else args
            )
    with file.open("wb") as stream:  # through a stream: given a path, torch.save would put its name into the bytes
        torch.save(records, stream)


def _is_wide(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim > 1


def replay(file: Path, transformer: nn.Module, draft: Path) -> list[dict[str, Any]]:
    """Run the user's records through the transformer and gather the statistics that dump would have gathered.

    Records are loaded with weights_only, so nothing in the file is executed. Records without a step each count as a
    batch of one step; records with "timestep_idx" are batched by runs in which no step repeats. Writes recorded parts
    into `draft` and returns their entries for prompts.json. ValueError if the file holds something else.
    """
    loaded = torch.load(file, weights_only=True, map_location="cpu")
    if not isinstance(loaded, list) or not loaded:
        raise ValueError(f"{file}: expected a list of transformer calls, found {type(loaded).__name__}")
    signature = inspect.signature(type(transformer).forward)
    calls = [_call(record, signature, file, number) for number, record in enumerate(loaded)]
    entries: list[dict[str, Any]] = []
    while calls:
        seen: set[int] = set()
        batch: list[dict[str, Any]] = []
        while calls and calls[0][0] not in seen:
            seen.add(calls[0][0])
            batch.append(calls.pop(0)[1])
        name = f"calib-{len(entries):03d}"
        _replay_batch(batch, transformer, unfinished(draft / name))
        finish(draft / name)
        entries.append({"folder": name, "prompt": None, "index": len(entries), "seed": None, "roles": ["calibration"]})
    return entries


def _call(record: Any, signature: inspect.Signature, file: Path, number: int) -> tuple[int, dict[str, Any]]:
    """The step of a record and its arguments by name."""
    step, args = 0, record
    kwargs: Mapping[str, Any] = {}
    if isinstance(record, Mapping):
        if "args" in record:
            step, args, kwargs = int(record.get("timestep_idx", 0)), record["args"], record.get("kwargs") or {}
        else:
            args, kwargs = [], record
    if not isinstance(args, list | tuple):
        raise ValueError(f"{file}: record {number} is a {type(record).__name__}, not a list, dict or timestep record")
    try:
        bound = signature.bind(None, *args, **kwargs)
    except TypeError as error:
        raise ValueError(f"{file}: record {number} does not fit the transformer's signature: {error}") from error
    return step, {name: value for name, value in bound.arguments.items() if name not in ("self", "return_dict")}


def _replay_batch(batch: list[dict[str, Any]], transformer: nn.Module, folder: Path) -> None:
    (folder / "calls").mkdir()
    parameter = next(transformer.parameters())
    steps: Any = SimpleNamespace(position=0, call=0)
    with LinearStatistics(transformer, steps) as statistics, torch.inference_mode():
        for position, call in enumerate(batch):
            steps.position = position
            tensors, outline = flatten(call)
            transformer(**moved(call, parameter.device, parameter.dtype))
            write_call(moved(tensors, "cpu", parameter.dtype), outline, folder / "calls", position)
    statistics.save(folder)
    save_file({}, folder / "text.safetensors")
