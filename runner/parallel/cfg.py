"""The two branches of guidance on two processes, put around a pipeline that runs them one after the other.

Rank 1 holds a twin of the transformer. While `split` is active, rank 0 gives it the first call of each pair
(unconditional), goes on with the second, and puts the answer where the pipeline already holds the first prediction.
Both are computed at once, each by the same operations as in one process, so results are bit-equal to those of separate
branches there. Hooks inside the transformer see one branch on each rank: those that are entered by `mirrored` see both,
those that are content with one are named by `content`, and for the sake of any other both branches stay on rank 0.
"""

from __future__ import annotations

import itertools
import logging
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from runner.generation.sharing import Sharing, share
from runner.hardware import PeerLost, mesh
from runner.model.arguments import moved

log = logging.getLogger(__name__)

SERVER = 1  # the rank that computes the first branch
M = TypeVar("M", bound=nn.Module)


class RankFailed(Exception):
    """The other rank could not do its part; its traceback is the cause of this one."""


class _Elsewhere(Exception):
    """Carries the traceback of another process, so that it is printed with ours."""

    def __str__(self) -> str:
        return f"on rank {SERVER}\n\n{self.args[0]}"


@dataclass
class _Twin:
    """What rank 0 knows of the transformer on rank 1."""

    number: int
    make: Callable[..., nn.Module]
    arguments: tuple[Any, ...]
    steps: Any = None  # where the generation stands, if somebody on rank 1 must know
    known_hooks: int = 0  # inside the transformer, of those who said that they can do with one branch
    outputs: dict[Any, tuple[torch.Size, torch.dtype]] = field(default_factory=dict)  # by the shapes of the inputs


_twins: WeakKeyDictionary[nn.Module, _Twin] = WeakKeyDictionary()
_numbers = itertools.count()
_held = SimpleNamespace(number=None)  # the twin that rank 1 has


def twinned(make: Callable[..., M], *arguments: Any) -> M:
    """`make(*arguments)`, a module, here and at the same time on rank 1; in a run of one process, here alone."""
    if mesh.size() == 1:
        return make(*arguments)
    twin = _Twin(next(_numbers), make, arguments)
    _load(twin)
    module = make(*arguments)
    _twins[module] = twin
    share(module, Sharing(split, mirrored, content))
    return module


@contextmanager
def split(transformer: nn.Module) -> Iterator[None]:
    """While active, the calls of `transformer` come in pairs, and the first of each pair is computed on rank 1.

    The first call of a pair returns a tensor of NaN that is filled when the second returns: not to be read between.
    Without a twin, and under hooks that want both branches or that answer in the transformer's place, nothing is split.
    Raises RankFailed with what failed there, PeerLost if rank 1 is gone.
    """
    twin = _twins.get(transformer)
    if twin is None:
        yield
        return
    if _inner_hooks(transformer) > twin.known_hooks or "forward" in vars(transformer):
        log.info("both branches of guidance are computed on rank 0: something here must see both")
        yield
        return
    _load(twin)
    log.info("one branch of guidance is computed on rank %d", SERVER)
    forward, calls = transformer.forward, itertools.count()
    awaited: list[Tensor] = []  # where the answer goes that rank 1 is computing

    def alternate(*positional: Any, **call: Any) -> Any:
        if positional:
            raise TypeError("the pipeline calls its transformer with positional arguments; they cannot be sent by name")
        number = next(calls)
        if number % 2 == 0:
            return (ask(number // 2, call),)
        output = forward(**call)
        if awaited:
            awaited.pop().copy_(_checked(mesh.receive(SERVER)))
        return output

    def ask(pair: int, call: dict[str, Any]) -> Tensor:
        position, device = pair if twin.steps is None else twin.steps.position, _device(call)
        mesh.send(("call", position, moved(call, "cpu"), device), SERVER)
        shapes = tuple((name, value.shape, value.dtype) for name, value in call.items() if isinstance(value, Tensor))
        if shapes not in twin.outputs:  # the form of an answer is learnt from the first
            answer: Tensor = _checked(mesh.receive(SERVER))
            twin.outputs[shapes] = answer.shape, answer.dtype
            return answer.to(device)
        shape, dtype = twin.outputs[shapes]
        awaited.append(torch.full(shape, torch.nan, dtype=dtype, device=device))
        return awaited[0]

    transformer.forward = alternate
    try:
        yield
    except PeerLost:  # there is nobody to hear more from
        raise
    except Exception:
        if awaited:
            mesh.receive(SERVER)  # an answer that nobody wants any more must not be taken for the next one
        raise
    finally:
        del transformer.forward


@contextmanager
def mirrored(hooks: Callable[..., Any], transformer: nn.Module, steps: Any, *arguments: Any) -> Iterator[Any]:
    """Enter `hooks(transformer, steps, *arguments)` here and around the twin; what is yielded is the one here.

    At the end `merge` of the one here gets what `seen()` of the other says. Without a twin it is entered here alone.
    """
    twin = _twins.get(transformer)
    with content(hooks(transformer, steps, *arguments), transformer) as here:
        if twin is None:
            yield here
            return
        _load(twin)
        mesh.send(("enter", hooks, arguments), SERVER)
        twin.steps = steps
        try:
            yield here
        except PeerLost:
            raise
        except Exception:
            mesh.send(("leave",), SERVER)
            mesh.receive(SERVER)
            raise
        finally:
            twin.steps = None
        mesh.send(("leave",), SERVER)
        here.merge(_checked(mesh.receive(SERVER)))


@contextmanager
def content(hooks: AbstractContextManager[Any], transformer: nn.Module) -> Iterator[Any]:
    """Enter hooks inside `transformer` that are content to see one branch of guidance."""
    twin = _twins.get(transformer)
    before = _inner_hooks(transformer) if twin else 0
    with hooks as entered:
        added = _inner_hooks(transformer) - before if twin else 0
        if twin:
            twin.known_hooks += added
        try:
            yield entered
        finally:
            if twin:
                twin.known_hooks -= added


def dismiss() -> None:
    """Let rank 1 go; there is no more work."""
    mesh.send(("end",), SERVER)


@dataclass
class _Failure:
    """An answer that could not be given."""

    error: str
    trace: str


def serve() -> None:
    """On rank 1: hold the twin that rank 0 asks for and answer its calls, until it is dismissed.

    What fails here is told to rank 0 in place of the next answer. Raises PeerLost when rank 0 is gone.
    """
    model: nn.Module | None = None
    hooks: Any = None
    steps = SimpleNamespace(position=0, call=0)
    failure: _Failure | None = None
    while True:
        command, *said = mesh.receive(0)
        answer: Any = None
        try:
            if command == "end":
                return
            if command == "load":
                model = failure = None  # free the old one before the new one is read
                make, arguments = said
                model = make(*arguments)
            elif command == "enter":
                make, arguments = said
                hooks = make(model, steps, *arguments).__enter__()
            elif command == "call" and failure is None:
                steps.position, call, device = said
                with torch.inference_mode():
                    assert model is not None
                    answer = model(**moved(call, device))[0].cpu()
            elif command == "leave" and hooks is not None:
                hooks.__exit__(None, None, None)
                answer = hooks.seen()
        except Exception as error:
            failure = _Failure(f"{type(error).__name__}: {error}", traceback.format_exc())
        if command == "leave":
            hooks = None
        if command in ("call", "leave"):
            mesh.send(failure or answer, 0)
            failure = None


def _load(twin: _Twin) -> None:
    """Have rank 1 hold this twin."""
    if _held.number != twin.number:
        mesh.send(("load", twin.make, twin.arguments), SERVER)
        _held.number = twin.number


def _checked(answer: Any) -> Any:
    if isinstance(answer, _Failure):
        _held.number = None  # it may hold nothing whole
        raise RankFailed(answer.error) from _Elsewhere(answer.trace)
    return answer


def _inner_hooks(transformer: nn.Module) -> int:
    """How many hooks and replaced forwards there are inside the transformer: they see what it computes on the way."""
    inner = (module for module in transformer.modules() if module is not transformer)
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) + ("forward" in vars(module)) for module in inner
    )


def _device(call: Mapping[str, Any]) -> str:
    return next(value.device.type for value in call.values() if isinstance(value, Tensor))
