"""What flows from block to block of a transformer: one tensor of tokens, or several."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn


class Streams:
    """Which arguments of a block carry on what the block before it returned. Learned from the tensors themselves while
    all blocks compute, so that no model is known by name and the order of what a block returns does not matter."""

    def __init__(self, block_modules: list[nn.Module]) -> None:
        self._parameters = [list(inspect.signature(type(block).forward).parameters)[1:] for block in block_modules]
        self._kinds = [type(block) for block in block_modules]
        self._learned: dict[int, list[str]] = {}  # by block: the argument that each output is in the next block
        self._form: dict[int, tuple[bool, list[bool]]] = {}  # by block: whether it returns a tuple, and which are None
        self._last: tuple[int, list[Any]] = (-1, [])

    def given(self, block: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a call by name."""
        return {**dict(zip(self._parameters[block], args, strict=False)), **kwargs}

    def entered(self, block: int, given: dict[str, Any]) -> None:
        """Learn from what a computing block gets how the block before it returned it."""
        before, outputs = self._last
        if before == block - 1 and before >= 0 and before not in self._learned:
            names = [next((n for n, v in given.items() if v is output), "") for output in outputs]
            if all(names) and None not in outputs:
                self._learned[before] = names

    def left(self, block: int, returned: Any) -> None:
        """Remember the form of what a computing block returned."""
        values = self.values(returned)
        self._form[block] = (isinstance(returned, tuple), [value is None for value in values])
        self._last = (block, values)

    def changes(self, block: int, given: dict[str, Any], returned: Any) -> dict[str, Tensor]:
        """What lies between the streams in `given` and those that `block` returned, by name."""
        return {
            name: after - given[name]
            for name, after in zip(self.names(block, given), self.values(returned), strict=True)
            if after is not None
        }

    def returned(self, block: int, streams: dict[str, Any]) -> Any:
        """Streams in the form in which this block returns them. Some models' last block drops one: None is there."""
        many, dropped = self._form[block]
        names = self.names(block, streams)
        values = tuple(None if gone else streams[name] for name, gone in zip(names, dropped, strict=True))
        return values if many else values[0]

    def complete(self, last: int) -> bool:
        """Whether the blocks up to `last` have all been seen, and there is nothing more to learn."""
        return last in self._form and last - 1 in self._learned

    @staticmethod
    def values(returned: Any) -> list[Any]:
        """What a block returned, as a list."""
        return list(returned) if isinstance(returned, tuple) else [returned]

    def names(self, block: int, given: dict[str, Any]) -> list[str]:
        """The argument that each output of a block is; ValueError where that cannot be told."""
        count = len(self._form[block][1])
        alike = [self._learned[block]] if block in self._learned else []
        alike += [names for at, names in self._learned.items() if self._kinds[at] is self._kinds[block]]
        if names := next((names for names in alike if len(names) == count), None):
            return names
        if count == 1:  # a model of one block, or a last block that is like no other
            return ["hidden_states" if "hidden_states" in given else self._parameters[block][0]]
        raise ValueError(f"which arguments of a {self._kinds[block].__name__} are its streams cannot be told")
