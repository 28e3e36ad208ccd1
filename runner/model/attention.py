"""The one function through which the attention of the models written here goes, and where another takes its place.

It lies in the models' room, for the models call it and imports point down: a technique that attends otherwise (sparse,
quantized, over several devices) is above the models and puts its own function in here from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor, nn


class Attend(Protocol):
    """Softmax attention of heads: q [N, heads, Q, d] over k and v [N, heads, K, d], to [N, heads, Q, d].

    N is the batch, or all else that does not attend to each other, such as the frames where attention is over space.
    `mask` broadcasts to [N, heads, Q, K]: boolean, true keeps; of the values' dtype, it is added to the logits.
    """

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor: ...


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Dense attention, see Attend."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class Attending(nn.Module):
    """A module whose heads attend by `self.attend`."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """Dense attention, or what stands in its place in this module, see Attend."""
        return attention(q, k, v, mask)


# Gets the dotted name of a module, the module, and how it attends so far; None leaves it as it is.
Replace = Callable[[str, Attending, Attend], Attend | None]


@contextmanager
def attention_replaced(model: nn.Module, replace: Replace) -> Iterator[list[str]]:
    """Have modules of `model` attend by what `replace` returns for each; yields the names of those that do.

    Several may be around one model, the inner one gets what the outer one put there. What was there before is back
    afterwards, on an error, too. A model that is not entirely written here attends elsewhere as well.
    """
    before: list[tuple[Attending, Attend | None]] = []
    names = []
    try:
        for name, module in model.named_modules():
            if not isinstance(module, Attending) or (attend := replace(name, module, module.attend)) is None:
                continue
            before.append((module, module.__dict__.get("attend")))
            module.__dict__["attend"] = attend  # on the instance, where it hides the method of the class
            names.append(name)
        yield names
    finally:
        for module, own in reversed(before):
            if own is None:
                del module.__dict__["attend"]
            else:
                module.__dict__["attend"] = own
