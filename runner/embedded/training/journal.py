"""What a training stage keeps in its folder: a resumable state, written atomically, and a curve, one JSON line a row.

Whatever is random in iteration i follows from (seed, i), so a state needs no generator and a resumed run repeats an
uninterrupted one.
"""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class Journal:
    """Files `<stage>.pt` and `<stage>.jsonl` in `folder`; counts wall and CPU minutes over all sessions."""

    def __init__(self, folder: str | Path, stage: str) -> None:
        self.folder, self.stage = Path(folder), stage
        self.folder.mkdir(parents=True, exist_ok=True)
        self._earlier: tuple[float, ...] = (0.0, 0.0)
        self._start = (time.monotonic(), time.process_time())

    def minutes(self) -> tuple[float, float]:
        """Wall minutes and CPU minutes (of all cores together) so far."""
        now = (time.monotonic(), time.process_time())
        wall, cpu = (e + (n - s) / 60 for e, n, s in zip(self._earlier, now, self._start, strict=True))
        return wall, cpu

    def session(self) -> float:
        """Wall minutes of this session."""
        return (time.monotonic() - self._start[0]) / 60

    def resume(self) -> dict[str, Any] | None:
        """The state last saved, or None."""
        path = self.folder / f"{self.stage}.pt"
        if not path.exists():
            return None
        state = torch.load(path, map_location="cpu", weights_only=True)
        self._earlier = tuple(state["minutes"])
        return state

    def save(self, **state: Any) -> None:
        """Replace the saved state in one step."""
        path = self.folder / f"{self.stage}.pt"
        torch.save({**state, "minutes": list(self.minutes())}, path.with_suffix(".new"))
        os.replace(path.with_suffix(".new"), path)

    def log(self, iteration: int, **row: float) -> None:
        """Append a row to the curve and print it."""
        wall, cpu = self.minutes()
        line = {"stage": self.stage, "iteration": iteration, "wall_minutes": wall, "cpu_minutes": cpu, **row}
        text = json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in line.items()})
        print(text, flush=True)
        with open(self.folder / f"{self.stage}.jsonl", "a") as file:
            file.write(text + "\n")


def train(
    journal: Journal,
    parts: Mapping[str, Any],
    iterations: int,
    step: Callable[[int], Mapping[str, float]],
    check: Callable[[], Mapping[str, float]],
    every: int,
    minutes: float | None = None,
) -> bool:
    """Make the steps that `journal` lacks; the states of `parts` are taken from it and kept in it by their names.

    A step returns its losses, whose means over the last 200 stand in the curve beside a check, `every` so many steps
    and after the last. False when `minutes` ended before the iterations.
    """
    first, losses = 0, []
    if (state := journal.resume()) is not None:
        first = state["iteration"]
        for name, part in parts.items():
            part.load_state_dict(state[name])
    for iteration in range(first, iterations):
        losses.append(step(iteration))
        done = iteration + 1
        checked = done % every == 0 or done == iterations
        over = minutes is not None and journal.session() > minutes
        if checked:
            journal.log(done, **_means(losses[-200:]), **check())
        if checked or over or done % 250 == 0:
            states = {name: part.state_dict() for name, part in parts.items()}
            journal.save(iteration=done, done=done == iterations, **states)
        if over and done < iterations:
            return False
    return True


class Plan(Protocol):
    """The numbers of a training that keeps a moving average: `rate` at its peak, `decay` of the average at the end,
    `check` iterations from one evaluation to the next."""

    @property
    def iterations(self) -> int: ...
    @property
    def rate(self) -> float: ...
    @property
    def decay(self) -> float: ...
    @property
    def check(self) -> int: ...


def train_average(
    journal: Journal,
    model: M,
    plan: Plan,
    losses: Callable[[int], Mapping[str, Tensor]],
    check: Callable[[M], Mapping[str, float]],
    minutes: float | None = None,
) -> M | None:
    """`train` under AdamW, and follow with a moving average, which is what `check` is asked about and what is returned;
    None when `minutes` ended before the plan. `losses` of an iteration are summed."""
    average = copy.deepcopy(model).requires_grad_(False).eval()
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=plan.rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)

    def step(iteration: int) -> dict[str, float]:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(plan.rate, iteration, plan.iterations, warmup=200)
        found = losses(iteration)
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(found.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        follow(average, model, min(plan.decay, (iteration + 1) / (iteration + 21)))
        return {name: float(each.detach()) for name, each in found.items()}

    parts = {"model": model, "average": average, "optimizer": optimizer}
    done = train(journal, parts, plan.iterations, step, lambda: check(average), plan.check, minutes)
    return average if done else None


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def random_of(seed: int, iteration: int) -> tuple[np.random.Generator, torch.Generator]:
    """The generators of an iteration: numpy's for clips, torch's (on the CPU) for noise."""
    rng = np.random.default_rng([seed, iteration])
    return rng, torch.Generator().manual_seed(int(rng.integers(2**62)))


def learning_rate(peak: float, iteration: int, total: int, warmup: int = 100) -> float:
    """Linear warm-up, then a cosine down to 1 % of the peak."""
    if iteration < warmup:
        return peak * (iteration + 1) / warmup
    done = (iteration - warmup) / max(total - warmup, 1)
    return float(peak * (0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * min(done, 1.0)))))


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    """One step of the moving average of a model's parameters."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
