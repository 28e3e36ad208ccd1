"""What a transformer says of itself to all techniques: its blocks, its attentions, its tokens. Imports no torch.

Each room's layout.py has `layout(transformer)`, `runner.model.layout_of` finds it. What cannot be told is None: nothing
here is a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Grid = tuple[int, int, int]  # tokens along frames, height and width, in the order in which they lie in the sequence
Kind = Literal[
    "self",  # over all tokens of the grid
    "space",  # over those of a frame
    "time",  # over those at one place of all frames
    "cross",  # from the tokens of the grid to others
    "joint",  # over the tokens of the grid and others, all to all
]
TOKENS = "hidden_states"  # the argument of a block that holds the tokens of the grid


@dataclass(frozen=True)
class Block:
    """A module that takes and returns the residual streams."""

    module: str  # dotted name under the transformer
    streams: tuple[str, ...] | None  # its arguments that it returns changed, in the order in which it returns them


@dataclass(frozen=True)
class Attention:
    """A module that attends; `queries` and `keys` are the arguments of its block whose tokens it takes, in order."""

    module: str  # dotted name under the transformer
    heads: int
    head_size: int
    kind: Kind | None
    queries: tuple[str, ...] | None
    keys: tuple[str, ...] | None  # and values


@dataclass(frozen=True)
class Cut:
    """A tensor that several devices can have a part of each, so that the blocks run on a part of the sequence."""

    module: str  # under the transformer, "" for itself; `name.*` for each entry of a list
    argument: str | int  # of that module, or which of its outputs; a tuple of tensors is cut one by one
    dim: int  # the tensor's that is cut; where it has one entry, all have it
    unit: Literal["token", "frame"] = "token"  # "frame": between whole frames alone
    dims: int | None = None  # how many the tensor must have to be cut; None for any


@dataclass(frozen=True)
class Layout:
    """The declaration of one transformer."""

    lists: tuple[tuple[str, ...], ...]  # names of lists of blocks as they run; the blocks of one entry take turns
    blocks: tuple[Block, ...]  # in the order in which they run
    attentions: tuple[Attention, ...]  # those of the blocks, by block, then as they are defined
    grid: Callable[[Mapping[str, Any]], Grid | None]  # of a call of the transformer, from its arguments by name
    cuts: tuple[Cut, ...] | None  # all that has to be cut to cut the sequence; None where it may not be, or is not told

    def attentions_of(self, block: str) -> tuple[Attention, ...]:
        """Those within a block."""
        return tuple(one for one in self.attentions if one.module.startswith(f"{block}."))


def in_turn(transformer: Any, lists: Sequence[str | Sequence[str]]) -> tuple[tuple[tuple[str, ...], ...], list[str]]:
    """Lists of blocks, each in a tuple of those that take turns, and the names of their blocks in running order.

    Raises ValueError for a list that the transformer does not have, and where there are no blocks.
    """
    groups = tuple((entry,) if isinstance(entry, str) else tuple(entry) for entry in lists)
    modules = dict(transformer.named_modules())
    if strange := [name for group in groups for name in group if type(modules.get(name)).__name__ != "ModuleList"]:
        raise ValueError(f"{type(transformer).__name__} has no list of modules {', '.join(strange)}")
    names = [f"{name}.{index}" for group in groups for index in range(len(modules[group[0]])) for name in group]
    if not names:
        raise ValueError(f"{type(transformer).__name__} declares no blocks: name its lists of them in model.blocks")
    return groups, names
