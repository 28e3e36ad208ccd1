"""Where a generation stands, for all who watch it: the place in its schedule, and the call of the transformer."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from runner.model.arguments import named
from runner.sampler.schedules import TRAINED_STEPS

SAME = 1e-6  # of a share of the schedule


def _override(thing: Any, name: str, new: Any) -> Callable[[], None]:
    """Have `thing` do `new` under `name`; returns what undoes it, also where another does the same around this one."""
    before = vars(thing).get(name)
    setattr(thing, name, new)
    return (
        functools.partial(delattr, thing, name) if before is None else functools.partial(setattr, thing, name, before)
    )


class Steps:
    """Where a generation stands: the position in `scheduler.timesteps`, and which call of that step this is.

    The position advances with `scheduler.step`, never by counting block calls, so guidance branches and solvers that
    evaluate twice are told apart. The timesteps that the transformer got are compared with the schedule when the
    generation ends (one synchronization), and a mismatch raises RuntimeError.
    """

    def __init__(self, pipeline: Any) -> None:
        self.scheduler, self.transformer = pipeline.scheduler, pipeline.transformer
        self.position = 0
        self.call = 0  # 0 for the first forward of a step; with separate guidance 0 is unconditional, 1 conditional
        self.branch: str | None = None  # what the pipeline calls this forward: cond, uncond, cond_uncond; None: nothing
        self.latents: Tensor | None = None  # after the last step, in the dtype of those before it
        self._names = list(inspect.signature(type(self.transformer).forward).parameters)[1:]
        self._seen: list[tuple[int, Any]] = []
        # Called before each step as (position, timestep, latents, prediction), and after it as (position).
        self.before: list[Callable[[int, Any, Tensor, Tensor], None]] = []
        self.after: list[Callable[[int], None]] = []

    def __enter__(self) -> Steps:
        step = self.scheduler.step
        takes = inspect.signature(step)

        @functools.wraps(step)  # pipelines ask for its signature before they pass a generator
        def advance(*args: Any, **kwargs: Any) -> Any:
            given = takes.bind(*args, **kwargs).arguments
            prediction, timestep, latents = (given[name] for name in ("model_output", "timestep", "sample"))
            for listener in self.before:
                listener(self.position, timestep, latents, prediction)
            result = step(*args, **kwargs)
            self.latents = (result[0] if isinstance(result, tuple) else result.prev_sample).to(latents.dtype)
            for done in self.after:
                done(self.position)
            self.position += 1
            self.call = 0
            return result

        self._undo = [_override(self.scheduler, "step", advance)]
        if (context := getattr(self.transformer, "cache_context", None)) is not None:

            @functools.wraps(context)
            def enter_branch(name: str, *args: Any, **kwargs: Any) -> Any:
                self.branch = name
                return context(name, *args, **kwargs)

            self._undo.append(_override(self.transformer, "cache_context", enter_branch))
        # First of all hooks, so that whoever hooks later sees the new call; `call` counts up after the forward.
        self._hooks = [
            self.transformer.register_forward_pre_hook(self._enter_call, with_kwargs=True),
            self.transformer.register_forward_hook(self._leave_call),
        ]
        return self

    def _enter_call(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = named(self.transformer, args, kwargs, self._names)
        self._seen.append((self.position, given.get("timestep", given.get("timesteps"))))

    def _leave_call(self, *_: Any) -> None:
        self.call += 1

    def __exit__(self, failure: type[BaseException] | None, *_: Any) -> None:
        for undo in self._undo:
            undo()
        for hook in self._hooks:
            hook.remove()
        if failure is None:
            self._check()

    def _check(self) -> None:
        expected = self.scheduler.timesteps
        for position, timestep in self._seen:
            if timestep is None or position >= len(expected):
                raise RuntimeError(f"step {position}: the transformer ran outside a schedule of {len(expected)} steps")
        if self._seen:
            got = torch.stack([torch.as_tensor(t).flatten()[0].cpu().double() for _, t in self._seen])
            want = torch.stack([expected[p].cpu().double() for p, _ in self._seen])
            # Some models take the share of the schedule, or what is left of it. bfloat16 holds a timestep to 2^-8.
            span = getattr(self.scheduler.config, "num_train_timesteps", TRAINED_STEPS)
            forms = (want, want / span, 1 - want / span)
            wrong = min(((got - form).abs() > 2**-8 * form.abs() + SAME for form in forms), key=lambda w: int(w.sum()))
            if wrong.any():
                at = int(wrong.nonzero()[0])
                raise RuntimeError(f"step {self._seen[at][0]}: the transformer got timestep {got[at]}, not {want[at]}")
