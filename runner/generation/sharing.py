"""A transformer whose calls are shared with other processes, and who wants to see them.

Whoever shares one says so here (`share`), so that a generation and a stage need not know how. Of a transformer that
nobody shares, everybody sees all.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn


@dataclass(frozen=True)
class Sharing:
    """What is entered around a generation; around hooks that must see all calls; around those content with a part."""

    split: Callable[[nn.Module], AbstractContextManager[None]]
    mirrored: Callable[..., AbstractContextManager[Any]]
    content: Callable[[AbstractContextManager[Any], nn.Module], AbstractContextManager[Any]]


_shared: WeakKeyDictionary[nn.Module, Sharing] = WeakKeyDictionary()


def share(transformer: nn.Module, sharing: Sharing) -> None:
    """Have the calls of this transformer shared, until it is gone."""
    _shared[transformer] = sharing


def split(transformer: nn.Module) -> AbstractContextManager[None]:
    """While entered, the transformer's calls are shared, if somebody shares them."""
    sharing = _shared.get(transformer)
    return sharing.split(transformer) if sharing else nullcontext()


def mirrored(
    hooks: Callable[..., Any], transformer: nn.Module, steps: Any, *arguments: Any
) -> AbstractContextManager[Any]:
    """Enter `hooks(transformer, steps, *arguments)`, which see all calls wherever they are computed."""
    sharing = _shared.get(transformer)
    if sharing:
        return sharing.mirrored(hooks, transformer, steps, *arguments)
    entered: AbstractContextManager[Any] = hooks(transformer, steps, *arguments)
    return entered


def content(hooks: AbstractContextManager[Any], transformer: nn.Module) -> AbstractContextManager[Any]:
    """Enter hooks inside the transformer that are content to see the calls that are computed here."""
    sharing = _shared.get(transformer)
    return sharing.content(hooks, transformer) if sharing else hooks
