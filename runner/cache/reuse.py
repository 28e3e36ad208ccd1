"""Apply a policy to the declared blocks of a pipeline, and leave nothing behind.

At a step that computes all, the change that a range of blocks makes to its streams is kept: what leaves its last block
minus what entered its first (Delta-DiT, arXiv 2406.01125). At a step that reuses, the first blocks of the range pass
their streams on untouched and the last one adds the change that was kept. Guidance branches that run one after the
other have each their own change.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from runner.cache.policy import Policy
from runner.generation.steps import Steps
from runner.model import blocks
from runner.model.streams import Streams


class Reuse:
    """The blocks of a transformer under a policy, for the one generation that `steps` follows. A policy that reuses
    nothing touches nothing."""

    def __init__(self, transformer: nn.Module, steps: Steps, policy: Policy) -> None:
        names = blocks(SimpleNamespace(transformer=transformer)) if policy.skipped() else []
        self._blocks = [transformer.get_submodule(name) for name in names]
        self.policy, self.steps = policy, steps
        self._streams = Streams(self._blocks)
        # By call of a step: the arguments of the kept range's first block and what its last one returned; and what lies
        # between them, which is found when it is first needed, because then all blocks have been seen.
        self._entered: dict[int, dict[str, Any]] = {}
        self._left: dict[int, tuple[int, Any]] = {}
        self._change: dict[int, dict[str, Tensor]] = {}
        self._before: list[Any] = []

    def __enter__(self) -> Reuse:
        for index, block in enumerate(self._blocks):
            self._before.append(vars(block).get("forward"))
            block.forward = self._forward(index, block.forward)
        return self

    def __exit__(self, *_: Any) -> None:
        for block, before in zip(self._blocks, self._before, strict=False):
            if before is None:
                del block.forward
            else:
                block.forward = before
        self._before.clear()
        for kept in (self._entered, self._left, self._change):
            kept.clear()

    def seen(self) -> None:
        """What one of two processes has to tell the other (runner.parallel.cfg): each reuses what it computed."""

    def merge(self, _: None) -> None:
        """There is nothing to merge."""

    def _forward(self, index: int, compute: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            step = self.steps.position
            if self.policy.reuses(index, step):
                return self._reuse(index, step, self._streams.given(index, args, kwargs))
            kept = self.policy.kept(step)
            if kept is None:
                return compute(*args, **kwargs)
            given = self._streams.given(index, args, kwargs)
            self._streams.entered(index, given)
            if index == kept[0]:
                self._entered[self.steps.call] = given
            returned = compute(*args, **kwargs)
            self._streams.left(index, returned)
            if index == kept[1] - 1:
                self._left[self.steps.call] = (index, returned)
            return returned

        return forward

    def _reuse(self, index: int, step: int, streams: dict[str, Any]) -> Any:
        call, found = self.steps.call, self.policy.ranges[step]
        if call in self._left:
            last, returned = self._left.pop(call)
            self._change[call] = self._streams.changes(last, self._entered.pop(call), returned)
        if found is not None and index == found[1] - 1:
            streams = streams | {name: streams[name] + change for name, change in self._change[call].items()}
        return self._streams.returned(index, streams)
