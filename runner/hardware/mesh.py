"""How the processes of one run meet and talk: messages of Python objects and host tensors, over gloo.

What goes over it is small (latents and predictions, a few megabytes a step), so it goes through the host on every
device.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from runner.hardware import PeerLost

# A rank waits as long as the leader works alone; one that has died closes its connection and is noticed at once. One
# that hangs keeps its connection: the leader, who waits for forwards and for loading alone, gives it up in the end.
PATIENCE = timedelta(days=30)
ANSWER = timedelta(minutes=30)


@contextmanager
def joined() -> Iterator[None]:
    """Meet the other processes where the environment says (MASTER_ADDR, MASTER_PORT, RANK, WORLD_SIZE)."""
    dist.init_process_group("gloo", timeout=ANSWER if os.environ["RANK"] == "0" else PATIENCE)
    yield
    dist.destroy_process_group()  # after a failure the end of the process does it


def rank() -> int:
    """This process's number; 0 leads, and is what a process alone is."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """How many processes the run has."""
    return dist.get_world_size() if dist.is_initialized() else 1


def send(message: Any, to: int) -> None:
    """Send anything that can be pickled, waiting until it is received; PeerLost if the other is gone."""
    with _lost(to):
        dist.send_object_list([message], to)


def receive(source: int) -> Any:
    """The next message of a process, waiting for it; PeerLost if the other is gone."""
    box: list[Any] = [None]
    with _lost(source):
        dist.recv_object_list(box, source)
    return box[0]


def gather(message: Any) -> list[Any]:
    """What every process says, by rank, on each of them."""
    said: list[Any] = [None] * size()
    dist.all_gather_object(said, message)
    return said


@contextmanager
def _lost(peer: int) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo has no narrower kind
        if any(word in str(error).lower() for word in ("timed out", "timeout")):  # of a wait; of what broke off by it
            raise PeerLost(peer, f"hangs: no answer for {ANSWER.total_seconds() / 60:g} minutes") from error
        raise PeerLost(peer) from error
