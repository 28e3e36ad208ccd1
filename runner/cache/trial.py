"""One generation under a policy, as a search needs it: in latent space, from recorded predictions as far as they serve.

As long as no block was reused, the trajectory is the recorded one: there the transformer answers with the prediction
that was recorded and computes nothing. What is computed is counted and timed, step by step.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor

from runner.cache.policy import Policy
from runner.cache.reuse import Reuse
from runner.cache.speed import StepTimes
from runner.generation.generate import generate
from runner.generation.steps import Steps
from runner.hardware import Hardware
from runner.search.kept import Found, Kept


class Replay:
    """Lets the transformer answer with given (guided) predictions [1,C,T,H,W] at some steps, by position.

    Both guidance branches get the same answer, whose guided combination is that answer, exactly. Where there is nothing
    to answer, the transformer's own forward stays, which another process may share (runner.parallel.cfg)."""

    def __init__(
        self, pipeline: Any, steps: Steps, predictions: Mapping[int, Tensor], replayed: Collection[int]
    ) -> None:
        self.transformer, self.steps = pipeline.transformer, steps
        self.predictions, self.replayed = predictions, replayed
        self.forwards = 0  # that were computed; the branches of a guided pair are one

    def __enter__(self) -> Replay:
        self._hook = self.transformer.register_forward_pre_hook(self._count)
        if not self.replayed:
            return self
        self._before = vars(self.transformer).get("forward")
        compute = self.transformer.forward
        takes = list(inspect.signature(compute).parameters)  # the latents come first

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self.steps.position not in self.replayed:
                return compute(*args, **kwargs)
            prediction = self.predictions[self.steps.position]
            x: Tensor = kwargs[takes[0]] if takes[0] in kwargs else args[0]
            answer = prediction.to(x.device).repeat(len(x) // len(prediction), *[1] * (x.ndim - 1))
            if _predicts_variance(self.transformer):
                answer = torch.cat([answer, torch.zeros_like(answer)], dim=1)  # which is dropped
            return Transformer2DModelOutput(answer) if kwargs.get("return_dict", True) else (answer,)

        self.transformer.forward = forward
        return self

    def _count(self, *_: Any) -> None:
        self.forwards += self.steps.call == 0 and self.steps.position not in self.replayed

    def __exit__(self, *_: Any) -> None:
        self._hook.remove()
        if not self.replayed:
            return
        if self._before is None:
            del self.transformer.forward
        else:
            self.transformer.forward = self._before


def _predicts_variance(transformer: Any) -> bool:
    """Whether a transformer answers with a variance, too, in as many channels as the latents have."""
    config = getattr(transformer, "config", {})
    channels = vars(transformer).get("out_channels", config.get("out_channels"))
    return channels is not None and channels == 2 * config.get("in_channels", 0)


@dataclass
class Trial:
    """latents [1,C,T,H,W] after the last step and frames [1,T,H,W,3] if they were asked for; seconds of the steps that
    were computed, but for the first of them, which warms up; forwards that were computed, a guided pair being one;
    predictions that were kept, by step."""

    latents: Tensor
    frames: Tensor
    seconds: dict[int, float] = field(default_factory=dict)
    forwards: int = 0
    predictions: dict[int, Tensor] = field(default_factory=dict)

    def packed(self) -> Found:
        """It without its frames, to be kept."""
        tensors = {f"prediction.{step}": tensor for step, tensor in self.predictions.items()}
        seconds = {str(step): value for step, value in self.seconds.items()}
        return {"seconds": seconds, "forwards": self.forwards}, {"latents": self.latents, **tensors}

    @classmethod
    def unpacked(cls, found: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Trial:
        """What was packed."""
        predictions = {int(name.partition(".")[2]): tensor for name, tensor in tensors.items() if "." in name}
        seconds = {int(step): value for step, value in found["seconds"].items()}
        return cls(tensors["latents"], torch.empty(0), seconds, found["forwards"], predictions)


@dataclass(frozen=True)
class Case:
    """A recorded generation: its final latents [1,C,T,H,W] and, by step, the predictions that led there; where frames
    are compared, its frames uint8 [T,H,W,3]."""

    prompt: str
    seed: int
    final: Tensor
    predictions: Mapping[int, Tensor]
    frames: Tensor | None = None


@dataclass
class Trials:
    """Runs policies on a pipeline and counts the forwards. `on_forwards` is told each number of them. What is `kept` of
    a search that was cut off is not run again; trials with frames, which may be gigabytes, are not kept."""

    pipeline: Any
    config: Mapping[str, Any]
    hardware: Hardware
    on_forwards: Callable[[int], None] = lambda _: None
    forwards: int = 0
    kept: Kept | None = None

    def run(
        self,
        case: Case,
        policy: Policy,
        computed_from: int,
        keep: bool = False,
        decode: bool = False,
        computed: Collection[int] | None = None,
    ) -> Trial:
        """Generate a case under a policy; the steps before `computed_from`, or all but `computed`, take its
        predictions. `keep` keeps those that are computed, for later trials; `decode` also makes frames."""
        replayed: Collection[int] = range(computed_from)
        if computed is not None:
            replayed = [t for t in range(len(policy.ranges)) if t not in computed]

        def make() -> Trial:
            return self._run(case, policy, replayed, keep, decode)

        if self.kept is None or decode:
            trial = make()
        else:
            asked = {"prompt": case.prompt, "seed": case.seed, "replayed": list(replayed)}
            asked["ranges"] = [reused and list(reused) for reused in policy.ranges]
            trial = Trial.unpacked(*self.kept.get(asked, lambda: make().packed()))
        self.forwards += trial.forwards
        self.on_forwards(trial.forwards)
        return trial

    def _run(self, case: Case, policy: Policy, replayed: Collection[int], keep: bool, decode: bool) -> Trial:
        trial = Trial(torch.empty(0), torch.empty(0))

        def keeps(at: int, _timestep: Any, _latents: Tensor, prediction: Tensor) -> None:
            if at not in replayed:
                trial.predictions[at] = prediction.cpu()

        with Steps(self.pipeline) as steps:
            if keep:
                steps.before.append(keeps)
            times = StepTimes(steps, self.hardware)
            with (
                Replay(self.pipeline, steps, case.predictions, replayed) as replay,
                Reuse(self.pipeline.transformer, steps, policy),
            ):
                done = generate(
                    self.pipeline, self.config, [case.prompt], [case.seed], self.hardware, decode=decode, steps=steps
                )
        trial.latents, trial.frames, trial.forwards = done.latents, done.frames, replay.forwards
        first = min(set(range(len(policy.ranges))) - set(replayed), default=0)  # it warms up
        trial.seconds = {t: taken for t, taken in times.seconds(first + 1).items() if t not in replayed}
        return trial
