"""W8A8 static: int8 weights with a scale for each output channel, int8 inputs with one recorded scale and offset.

For a linear y = x @ W^T + b whose input lies in [minimum, maximum] (zero included):

    s_w[n] = max(max_k |W[n,k]| / 127, eps)      Wq = clamp(round(W / s_w), -128, 127)
    s_x = max((maximum - minimum) / 255, eps)    z = clamp(-128 - round(minimum / s_x), -128, 127)
    deq = s_x * s_w                              quant_bias = round(b / deq - z * sum_k Wq[n,k])
    xq = clamp(round(x / s_x) + z, -128, 127)    y = (xq @ Wq^T + quant_bias) * deq

round is half to even. These are msModelSlim's formulas, with two differences for bfloat16 and float16 models: scales
are formed in float32, not in the model's dtype, so that none is lost to a narrow one; and s_x is rounded to the model's
dtype, in which it is stored and runtimes quantize with it, before z, deq and quant_bias are derived from it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from runner.quant.kernels import static_int8
from runner.quant.linear import Compute, QuantizedLinear
from runner.quant.observers import EPS, Range
from runner.quant.parts import FLOATS, Part, stored

INT32_MAX = 2**31 - 1

# Of a model of dtype dt; deq_scale is float32 if dt is bfloat16, else the float32 bit pattern in int64.
PARTS = {
    "weight": Part("n k", (torch.int8,)),
    "bias": Part("n", "input_scale", optional=True, is_float=True),
    "weight_scale": Part("n 1", "input_scale"),
    "weight_offset": Part("n 1", "input_scale"),
    "input_scale": Part("1", FLOATS),  # dt
    "input_offset": Part("1", "input_scale"),
    "quant_bias": Part("n", (torch.int32,)),
    "deq_scale": Part("n", (torch.float32, torch.int64)),
}


def quantize_linear(name: str, linear: nn.Linear, calibrated: Range) -> dict[str, Tensor]:
    """The parts of one linear whose input has the range `calibrated`; see the module's formulas.

    ValueError, with the layer's name, for a value that its dtype cannot hold, or integer sums that could overflow.
    """
    dtype = linear.weight.dtype
    if dtype not in FLOATS:
        raise ValueError(f"{name}: weights are {dtype}; W8A8 is made from float32, bfloat16 or float16")
    weight = linear.weight.detach().cpu().float()
    weight_scale = (weight.abs().amax(dim=1, keepdim=True) / 127).clamp(min=EPS)
    if not weight_scale.isfinite().all():
        raise ValueError(f"{name}: its weights are not all finite")
    weight_int = torch.div(weight, weight_scale).round_().clamp_(-128, 127)

    minimum, maximum = (torch.tensor([x], dtype=torch.float32) for x in (calibrated.minimum, calibrated.maximum))
    minimum, maximum = minimum.clamp(max=0), maximum.clamp(min=0)
    input_scale = stored(name, "input_scale", ((maximum - minimum) / 255).clamp(min=EPS), dtype)
    offset = (-128 - torch.round(minimum / input_scale.float())).clamp(-128, 127)

    deq_scale = input_scale.float() * weight_scale.flatten()
    bias = None if linear.bias is None else linear.bias.detach().cpu()
    quant_bias = _quant_bias(name, bias, deq_scale, weight_int, offset)
    parts = {
        "weight": weight_int.to(torch.int8),
        "weight_scale": stored(name, "weight_scale", weight_scale, dtype),
        "weight_offset": torch.zeros_like(weight_scale, dtype=dtype),
        "input_scale": input_scale,
        "input_offset": offset.to(dtype),  # integers up to 128: every dtype holds them
        "quant_bias": quant_bias,
        "deq_scale": deq_scale if dtype == torch.bfloat16 else deq_scale.view(torch.int32).to(torch.int64),
    }
    return parts if bias is None else parts | {"bias": bias}


def _quant_bias(layer: str, bias: Tensor | None, deq_scale: Tensor, weight_int: Tensor, offset: Tensor) -> Tensor:
    """round(b / deq - z * sum Wq) as int32 [N], where no input whatever can take the sums out of 32 bits."""
    ratio = bias.double() / deq_scale.double() if bias is not None else torch.zeros_like(deq_scale, dtype=torch.float64)
    quant_bias = torch.round(ratio - offset.double() * weight_int.sum(dim=1, dtype=torch.float64))
    largest = quant_bias.abs() + 2**14 * weight_int.shape[1]  # of any product 128 * 128
    if not (largest <= INT32_MAX).all():
        channel = int(largest.nan_to_num(torch.inf).argmax())
        raise ValueError(
            f"{layer}: quant_bias {quant_bias[channel]:.3g} of output channel {channel} overflows 32 bits (deq_scale "
            f"{deq_scale[channel]:.3g}): its recorded input range is too small for its bias; check the calibration "
            "prompts, or keep this layer in float (quant.exclude)"
        )
    return quant_bias.to(torch.int32)


class W8A8Linear(QuantizedLinear):
    """y = (xq @ weight^T + quant_bias) * deq_scale, xq = clamp(round(x / input_scale) + input_offset, -128, 127)."""

    multiplies_int8 = True

    input_scale: Tensor
    input_offset: Tensor
    quant_bias: Tensor
    deq_scale: Tensor

    def bind(self, x: Tensor) -> tuple[Compute, int]:
        scale, offset = self.input_scale.float(), int(self.input_offset)
        return static_int8.bind(self.weight, self.quant_bias, self.dequantization_scale(), scale, offset, x)

    def dequantization_scale(self) -> Tensor:
        """deq_scale as numbers: float32 [N]."""
        if self.deq_scale.dtype == torch.int64:
            return self.deq_scale.to(torch.int32).view(torch.float32)
        return self.deq_scale

    def dequantized_weight(self) -> Tensor:
        return self.weight * (self.dequantization_scale() / self.input_scale.float())[:, None]


Linear = W8A8Linear
