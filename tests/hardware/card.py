"""A device of its own in the host's memory: its tensors say that they are there, and compute with one another alone.

Below `Card` every operator is intercepted. What is made on the device or from its tensors is a tensor of the device,
around one of the CPU that computes; an operator that gets tensors of the device and of the host raises, as it would on
a real one. `peak` is the most memory that they held at once.
"""

from __future__ import annotations

import sys
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

BETWEEN = ("aten::copy_", "aten::_to_copy")  # take tensors of both
INDEXED = ("aten::index", "aten::index_put_", "aten::_index_put_impl_")  # take indices of the host


class OnCard(Tensor):
    """A tensor of the device."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, card: Card) -> OnCard:
        form = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        with torch.inference_mode(False):  # below it views of tensors that were made outside could not be made
            return Tensor._make_wrapper_subclass(cls, held.shape, **form, device=card.device)  # type: ignore[attr-defined]

    def __init__(self, held: Tensor, card: Card) -> None:
        self.held = held
        card.keep(self)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} on a tensor of a card that is gone")

    def tolist(self) -> Any:
        return self.held.tolist()

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OnCard({self.held})"


class Hooks(torch._C._acc.PrivateUse1Hooks):
    """What torch asks of a backend that is written in Python."""

    def is_available(self) -> bool:
        return True

    def has_primary_context(self, _: int) -> bool:
        return True

    def is_built(self) -> bool:
        return True


class Guard(torch._C._acc.DeviceGuard):
    def type_(self) -> Any:
        return torch._C._autograd.DeviceType.PrivateUse1


class Card(TorchDispatchMode):
    """The device `name`, to be entered; torch must know the name (torch.utils.rename_privateuse1_backend)."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.device = torch.device(name, 0)
        self.memory = self.peak = 0  # bytes
        self._shares: dict[int, int] = {}  # of each storage: how many tensors have it
        module = getattr(torch, name)
        module._lazy_init = lambda: None  # torch calls it before the first tensor
        sys.modules[f"torch.{name}"] = module
        torch._C._set_only_lift_cpu_tensors(True)  # what torch.tensor makes goes to a device by an operator
        torch._C._acc.register_python_privateuseone_hook(Hooks())
        torch._C._acc.register_python_privateuseone_device_guard(Guard())

    def keep(self, tensor: OnCard) -> None:
        """Count the memory of a tensor, until it is gone."""
        storage = tensor.held.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        self._shares[place] = self._shares.get(place, 0) + 1
        if self._shares[place] == 1:
            self.memory += size
            self.peak = max(self.peak, self.memory)
        weakref.finalize(tensor, self._drop, place, size)

    def _drop(self, place: int, size: int) -> None:
        self._shares[place] -= 1
        if not self._shares[place]:
            del self._shares[place]
            self.memory -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), func._schema.name
        if name == "aten::_has_compatible_shallow_copy_type":  # a parameter that moves becomes another object
            return False
        if name == "aten::to":  # one of several ways to say _to_copy
            with self:
                return func.decompose(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        ours = [tensor for tensor in tensors if isinstance(tensor, OnCard)]
        theirs = [tensor for tensor in tensors if not isinstance(tensor, OnCard) and tensor.ndim]
        if name in INDEXED:
            theirs = [tensor for tensor in (args[0], *args[2:]) if any(tensor is each for each in theirs)]
        if ours and theirs and name not in BETWEEN:
            raise RuntimeError(f"{func}: expected all tensors on {self.device}, and one is on {theirs[0].device}")
        here = bool(ours)
        if kwargs.get("device") is not None:
            here = torch.device(kwargs["device"]).type == self.device.type
            kwargs["device"] = "cpu" if here else kwargs["device"]
        result = func(*tree_map(_held, args), **tree_map(_held, kwargs))
        if here and any(isinstance(x, Tensor) and x.dtype == torch.float64 for x in tree_leaves(result)):
            raise TypeError(f"{func}: {self.device} has no float64")
        if func._schema.is_mutable and isinstance(result, Tensor):
            return kwargs.get("out", args[0]) if args else result
        return tree_map(lambda x: OnCard(x, self) if isinstance(x, Tensor) else x, result) if here else result


def _held(value: Any) -> Any:
    return value.held if isinstance(value, OnCard) else value
