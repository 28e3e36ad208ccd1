"""What dump remembers of the float trajectory, and what the other stages read from it.

A recording is a folder with one part for each prompt:

    prompts.json                      which prompt, seed and roles each part has
    prompt-000/text.safetensors       prompt embeddings and masks, stored once
    prompt-000/calls/step-000.safetensors   what the transformer got at each step, without the text
    prompt-000/trajectory/step-000.safetensors   the latents and the prediction that the solver got at each step
    prompt-000/movement/step-001.safetensors   how every block boundary moved since the steps before (movement.py)
    prompt-000/statistics.safetensors + .json   the range of every linear's input, step by step
    prompt-000/latents.safetensors, frames.safetensors   the float result
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from runner.generation.steps import Steps
from runner.model.arguments import flatten, named, restore
from runner.recording.statistics import FIELDS, LayerStatistics
from runner.recording.step_files import step_file, step_files

REST = "rest"  # key of a call's metadata: what of it is no tensor, or not written again


class Calls:
    """Streams every call of the transformer to disk as it happens. What is equal in all steps is written once: the text
    apart, all else with the first call of each branch."""

    TEXT = ("encoder_hidden_states", "encoder_attention_mask", "attention_mask")

    def __init__(self, transformer: nn.Module, steps: Steps, folder: Path) -> None:
        self.transformer, self.steps, self.folder = transformer, steps, folder
        (folder / "calls").mkdir(parents=True, exist_ok=True)
        self._names = list(inspect.signature(type(transformer).forward).parameters)[1:]
        self._first: dict[int, dict[str, Tensor]] = {}  # by branch, what its first call got

    def __enter__(self) -> Calls:
        self._hook = self.transformer.register_forward_pre_hook(self._record, with_kwargs=True)
        return self

    def _record(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = named(self.transformer, args, kwargs, self._names)
        tensors, outline = flatten({name: value for name, value in given.items() if name != "return_dict"})
        call = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        branch = self.steps.call
        if branch not in self._first:
            self._first[branch] = {name: value.clone() for name, value in call.items()}
            call = {name: value for name, value in call.items() if name not in self.TEXT}
            same = []
        else:
            first = self._first[branch]
            same = [name for name, value in call.items() if _same(value, first.get(name))]
            call = {name: value for name, value in call.items() if name not in same}
        same = [name for name in same if name not in self.TEXT]
        write_call(call, outline, self.folder / "calls", self.steps.position, branch, same)

    def __exit__(self, failure: type[BaseException] | None, *_: Any) -> None:
        self._hook.remove()
        if failure is None:
            text = {
                f"{branch}.{name}": value
                for branch, call in self._first.items()
                for name, value in call.items()
                if name in self.TEXT
            }
            save_file(text, self.folder / "text.safetensors")


def write_call(
    tensors: dict[str, Tensor],
    outline: dict[str, Any],
    folder: Path,
    position: int,
    branch: int = 0,
    as_first: Sequence[str] = (),
) -> None:
    """One call (see model.arguments.flatten) as a file of `folder`; `as_first` are tensors that it has in common with
    the first call of this branch, and are not written again."""
    rest = {"arguments": outline, "as_first": list(as_first)}
    metadata = {REST: json.dumps(rest, sort_keys=True)} if any(rest.values()) else None
    whole: dict[str, Tensor] = {}
    places: set[int] = set()  # in memory, which no two tensors of a file may share
    for key, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        whole[key] = tensor.clone() if place in places else tensor.contiguous()
        places.add(place)
    save_file(whole, step_file(folder, position, branch), metadata)


def _same(a: Tensor, b: Tensor | None) -> bool:
    return b is not None and a.dtype == b.dtype and torch.equal(a, b)


class Trajectory:
    """Streams the latents before every step of the solver, and the (guided) prediction that it got, to disk."""

    def __init__(self, steps: Steps, folder: Path) -> None:
        self.folder = folder / "trajectory"
        self.folder.mkdir(parents=True, exist_ok=True)
        steps.before.append(self._record)

    def _record(self, position: int, timestep: Any, latents: Tensor, prediction: Tensor) -> None:
        tensors = {
            "timestep": torch.as_tensor(timestep).detach().cpu().double().reshape(()),
            "latents": latents.detach().cpu().contiguous(),
            "prediction": prediction.detach().cpu().contiguous(),
        }
        save_file(tensors, step_file(self.folder, position))


@dataclass(frozen=True)
class Step:
    """A step of a recorded trajectory: what the solver had and what it got. Latents are as the scheduler keeps them
    (not scaled for the model), [1,C,T,H,W]; prediction is the guided one, of the same shape."""

    position: int
    timestep: float
    latents: Tensor
    prediction: Tensor


class Predictions(Mapping[int, Tensor]):
    """The (guided) prediction of each step of a recorded trajectory, [1,C,T,H,W], read when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self._files = {file.position: file.path for file in step_files(folder)}

    def __getitem__(self, step: int) -> Tensor:
        with safe_open(self._files[step], "pt") as file:
            return file.get_tensor("prediction")

    def __iter__(self) -> Iterator[int]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


class Recording:
    """Reads a dump artifact: the prompts, the transformer's calls and the statistics of its linears."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.prompts: list[dict[str, Any]] = json.loads((folder / "prompts.json").read_text())

    def parts(self, role: str) -> list[Path]:
        """Folders of the prompts of a role (calibration, trajectory, verification, text), in order of their list."""
        return [self.folder / p["folder"] for p in self.entries(role)]

    def entries(self, role: str) -> list[dict[str, Any]]:
        """What prompts.json says of them: prompt, seed and folder among it."""
        return sorted((p for p in self.prompts if role in p["roles"]), key=lambda p: p["index"])

    def statistics(self) -> dict[str, LayerStatistics]:
        """Statistics of every linear over all calibration prompts, in the module's order."""
        parts = self.parts("calibration")
        tensors = [load_file(part / "statistics.safetensors") for part in parts]
        source: Mapping[str, str] = json.loads((parts[0] / "statistics.json").read_text())
        if len(steps := {len(t[f"{next(iter(source))}.minimum"]) for t in tensors}) > 1:
            raise ValueError(f"the calibration batches cover {sorted(steps)} steps; all must cover the same steps")
        merged = {
            name: LayerStatistics(*(torch.stack([t[f"{name}.{field}"] for t in tensors]) for field in FIELDS))
            for name in dict.fromkeys(source.values())
        }
        return {name: merged[origin] for name, origin in source.items()}

    def trajectory(self, part: Path) -> Iterator[Step]:
        """Every step of one part that is no mere reference, in order; read one by one, so that a long trajectory of
        large latents needs no memory. What the last step led to is `final`."""
        for position, _, file in step_files(part / "trajectory"):
            step = load_file(file)
            yield Step(position, float(step["timestep"]), step["latents"], step["prediction"])

    def predictions(self, part: Path) -> Mapping[int, Tensor]:
        """The predictions of one calibration or verification part by step, each read when it is asked for."""
        return Predictions(part / "trajectory")

    def final(self, part: Path) -> Tensor:
        """Latents of one part after its last step, [1,C,T,H,W]."""
        return load_file(part / "latents.safetensors")["latents"]

    def calls(self, part: Path) -> Iterator[dict[str, Any]]:
        """Keyword arguments of every call of the transformer in one part, in the order in which they were made."""
        text = load_file(part / "text.safetensors")
        first: dict[int, dict[str, Tensor]] = {}
        for _, branch, file in step_files(part / "calls"):
            with safe_open(file, framework="pt") as opened:
                call = {name: opened.get_tensor(name) for name in opened.keys()}
                rest = json.loads((opened.metadata() or {}).get(REST, "{}"))
            call |= {key.partition(".")[2]: v for key, v in text.items() if key.partition(".")[0] == str(branch)} | call
            call |= {name: first[branch][name] for name in rest.get("as_first", ())}
            first.setdefault(branch, call)
            yield restore(call, rest.get("arguments", {}))
