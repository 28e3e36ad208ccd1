"""A linear layer with int8 weights and statically quantized int8 inputs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from runner.quant import kernels

log = logging.getLogger(__name__)

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class W8A8Linear(nn.Module):
    """y = (xq @ weight^T + quant_bias) * deq_scale, xq = clamp(round(x / input_scale) + input_offset, -128, 127).

    x [..., K] of any float dtype -> [..., N] of the same dtype. The buffers are the exported tensors, bit for bit
    (shapes: `runner.quant.export`). Moving, casting (.half(), .to(dtype)), copying and pickling the module leave them
    so: it computes the same integers ever after. For inference; no gradient passes.
    """

    weight: Tensor
    weight_scale: Tensor
    weight_offset: Tensor
    input_scale: Tensor
    input_offset: Tensor
    quant_bias: Tensor
    deq_scale: Tensor
    bias: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        weight_scale: Tensor,
        weight_offset: Tensor,
        input_scale: Tensor,
        input_offset: Tensor,
        quant_bias: Tensor,
        deq_scale: Tensor,
        bias: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.register_buffer("weight_scale", weight_scale)
        self.register_buffer("weight_offset", weight_offset)
        self.register_buffer("input_scale", input_scale)
        self.register_buffer("input_offset", input_offset)
        self.register_buffer("quant_bias", quant_bias)
        self.register_buffer("deq_scale", deq_scale)
        self._compute: Callable[[Tensor], Tensor] | None = None
        self.packed_bytes = 0  # that the kernel's own layout of the weights takes beside them

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.in_features:
            raise ValueError(f"a linear of {self.in_features} inputs got {list(x.shape)}")
        if x.numel() == 0:
            return x.new_empty(*x.shape[:-1], self.out_features)
        return (self._compute or self._prepare(x))(x)

    def _prepare(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """Choose a kernel for inputs like `x` and lay the weights out for it. Later inputs take the same one."""
        scale, offset = self.input_scale.float(), int(self.input_offset)
        deq_scale = self.dequantization_scale()
        compute, self.packed_bytes = kernels.bind(self.weight, self.quant_bias, deq_scale, scale, offset, x)
        self._compute = compute
        return compute

    def drop_packed(self) -> None:
        """Free the kernel's own layout of the weights; the next forward makes it again."""
        self._compute, self.packed_bytes = None, 0

    @property
    def is_prepared(self) -> bool:
        """Whether a forward has chosen a kernel and laid the weights out for it."""
        return self._compute is not None

    def dequantization_scale(self) -> Tensor:
        """deq_scale as numbers: float32 [N]."""
        if self.deq_scale.dtype == torch.int64:
            return self.deq_scale.to(torch.int32).view(torch.float32)
        return self.deq_scale

    def dequantized_weight(self) -> Tensor:
        """The weight that the layer computes with: float32 [N, K]."""
        return self.weight * (self.dequantization_scale() / self.input_scale.float())[:, None]

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> W8A8Linear:
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
    layers = [module for module in model.modules() if isinstance(module, W8A8Linear)]
    weights, packed = sum(layer.weight.numel() for layer in layers), sum(layer.packed_bytes for layer in layers)
    if packed > 2 * weights:
        log.warning(
            "%d quantized linears hold %.1f MB for their kernels beside %.1f MB of int8 weights: %.1f times as much",
            *(len(layers), packed / 1e6, weights / 1e6, packed / weights),
        )
    return {"choices": kernels.choices(), "weight_bytes": weights, "packed_bytes": packed}
