"""What every quantized linear is: exported tensors as buffers that travel as bits, and a kernel bound to them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from runner.quant import kernels

log = logging.getLogger(__name__)

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

Compute = Callable[[Tensor], Tensor]


class QuantizedLinear(nn.Module):
    """x [..., K] of any float dtype -> [..., N] of the same dtype; a scheme says how (`bind`).

    The buffers are the exported tensors, bit for bit. Moving, casting (.half(), .to(dtype)), copying and pickling the
    module leave them so: it computes the same ever after. For inference; no gradient passes.
    """

    multiplies_int8: ClassVar[bool] = False  # whether both operands of its products are 8-bit integers

    weight: Tensor
    bias: Tensor | None

    def __init__(self, *, weight: Tensor, bias: Tensor | None = None, **parts: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        for name, part in parts.items():
            self.register_buffer(name, part)
        self.out_features, self.in_features = self.float_shape()
        self._compute: Compute | None = None
        self.packed_bytes = 0  # that the kernel's own layout of the weights takes beside them

    def bind(self, x: Tensor) -> tuple[Compute, int]:
        """The layer's computation by the kernel for inputs like `x`, and the bytes of the kernel's own layout."""
        raise NotImplementedError

    def dequantized_weight(self) -> Tensor:
        """The weight that the layer computes with: float32 [N, K]."""
        raise NotImplementedError

    def float_shape(self) -> tuple[int, int]:
        """N and K of the linear that it stands for; where weights are packed, not those of the buffer."""
        n, k = self.weight.shape
        return n, k

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.in_features:
            raise ValueError(f"a linear of {self.in_features} inputs got {list(x.shape)}")
        if x.numel() == 0:
            return x.new_empty(*x.shape[:-1], self.out_features)
        if self._compute is None:  # later inputs take the kernel of the first
            self._compute, self.packed_bytes = self.bind(x)
        return self._compute(x)

    def drop_packed(self) -> None:
        """Free the kernel's own layout of the weights; the next forward makes it again."""
        self._compute, self.packed_bytes = None, 0

    @property
    def is_prepared(self) -> bool:
        """Whether a forward has chosen a kernel and laid the weights out for it."""
        return self._compute is not None

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        # Scales travel as bit patterns: .to and .half move integers and leave their values alone.
        def carry(buffer: Tensor) -> Tensor:
            bits = buffer.view(_BITS[buffer.element_size()])
            moved = fn(bits)
            if moved.dtype != bits.dtype:  # .type(dtype) casts integers too
                moved = bits.to(moved.device)
            return moved.view(buffer.dtype)

        self.drop_packed()
        return super()._apply(carry, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.drop_packed()
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compute": None, "packed_bytes": 0}  # a layout can be neither copied nor pickled


def computed_with(model: nn.Module) -> dict[str, Any]:
    """For measurements: the kernels that this process has chosen, and the bytes of the model's int8 weights and of the
    layouts that its kernels hold beside them. The log says where these are more than twice the weights."""
    layers = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
    weights, packed = sum(layer.weight.nbytes for layer in layers), sum(layer.packed_bytes for layer in layers)
    if packed > 2 * weights:
        log.warning(
            "%d quantized linears hold %.1f MB for their kernels beside %.1f MB of int8 weights: %.1f times as much",
            *(len(layers), packed / 1e6, weights / 1e6, packed / weights),
        )
    return {"choices": kernels.choices(), "weight_bytes": weights, "packed_bytes": packed}
