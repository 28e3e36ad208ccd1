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

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from runner.quant import export
from runner.quant.linear import W8A8Linear
from runner.quant.observers import EPS, Range

INT32_MAX = 2**31 - 1


def quantize(
    model: nn.Module, ranges: Mapping[str, Range], layers: Iterable[str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors (on the CPU) and description of `model` with `layers` quantized; the model stays as it is.

    `layers` are full names of nn.Linear modules, `ranges` those of their inputs. ValueError, with the layer's name, for
    a layer without a range, a value that its dtype cannot hold, or integer sums that could overflow 32 bits.
    """
    chosen = set(layers)
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if unknown := sorted(chosen - linears):
        raise ValueError(f"not linears of {type(model).__name__}: {', '.join(unknown)}")
    if missing := sorted(chosen - ranges.keys()):
        raise ValueError(f"no recorded range for {', '.join(missing)}")

    def entries() -> Iterator[tuple[str, Tensor | dict[str, Tensor]]]:
        seen: set[int] = set()
        for name, module in model.named_modules():
            if name in chosen:
                assert isinstance(module, nn.Linear)
                yield name, quantize_linear(name, module, ranges[name])
                continue
            for leaf, parameter in module.named_parameters(recurse=False):
                if id(parameter) not in seen:  # tied parameters are exported once, under their first name
                    seen.add(id(parameter))
                    yield f"{name}.{leaf}" if name else leaf, parameter.detach().cpu()

    return export.assemble(entries())


def quantize_linear(name: str, linear: nn.Linear, range_: Range) -> dict[str, Tensor]:
    """The exported parts of one linear (`name` is for errors); see the module's formulas."""
    dtype = linear.weight.dtype
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"{name}: weights are {dtype}; W8A8 is made from float32, bfloat16 or float16")
    weight = linear.weight.detach().cpu().float()
    weight_scale = (weight.abs().amax(dim=1, keepdim=True) / 127).clamp(min=EPS)
    if not weight_scale.isfinite().all():
        raise ValueError(f"{name}: its weights are not all finite")
    weight_int = torch.div(weight, weight_scale).round_().clamp_(-128, 127)

    minimum, maximum = (torch.tensor([x], dtype=torch.float32) for x in (range_.minimum, range_.maximum))
    minimum, maximum = minimum.clamp(max=0), maximum.clamp(min=0)
    input_scale = _stored(name, "input_scale", ((maximum - minimum) / 255).clamp(min=EPS), dtype)
    offset = (-128 - torch.round(minimum / input_scale.float())).clamp(-128, 127)

    deq_scale = input_scale.float() * weight_scale.flatten()
    bias = None if linear.bias is None else linear.bias.detach().cpu()
    quant_bias = _quant_bias(name, bias, deq_scale, weight_int, offset)
    parts = {
        "weight": weight_int.to(torch.int8),
        "weight_scale": _stored(name, "weight_scale", weight_scale, dtype),
        "weight_offset": torch.zeros_like(weight_scale, dtype=dtype),
        "input_scale": input_scale,
        "input_offset": offset.to(dtype),  # integers up to 128: every dtype holds them
        "quant_bias": quant_bias,
        "deq_scale": deq_scale if dtype == torch.bfloat16 else deq_scale.view(torch.int32).to(torch.int64),
    }
    return parts if bias is None else parts | {"bias": bias}


def _stored(layer: str, what: str, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """`scale` in the model's dtype; ValueError where that would be zero, infinite, or off by more than 2^-8 of it."""
    stored = scale.to(dtype)
    wrong = ~((stored.float() - scale).abs() <= scale * 2**-8)  # an infinite difference is wrong too
    if wrong.any():
        channel = int(wrong.flatten().nonzero()[0])
        where = f" of output channel {channel}" if scale.numel() > 1 else ""
        raise ValueError(
            f"{layer}: {what} {scale.flatten()[channel]:.3g}{where} does not fit {str(dtype).removeprefix('torch.')} "
            f"(it would be {stored.flatten()[channel]:.3g}; normal numbers are {torch.finfo(dtype).tiny:.2g} to "
            f"{torch.finfo(dtype).max:.3g}): use model.dtype=bf16, or keep this layer in float (quant.exclude)"
        )
    return stored


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


def apply(model: nn.Module, tensors: Mapping[str, Tensor], description: Mapping[str, str]) -> nn.Module:
    """Swap the quantized linears of `model` for W8A8Linear and load every other parameter, in place; returns it.

    The model may be on the meta device, so that its float weights are never held; what was there then stays where
    `tensors` are. ValueError for an export of another model, with the missing, unexpected and misshapen names.
    """
    layers, floats = export.take_apart(tensors, description)
    modules = dict(model.named_modules(remove_duplicate=False))
    linears = {name: module for name in layers if isinstance(module := modules.get(name), nn.Linear)}
    _check_fit(model, linears, layers, floats)

    def to_its_device(new: nn.Module | Tensor, old: Tensor) -> Any:
        return new if old.is_meta else new.to(old.device)

    # By identity: what stands in several places is replaced in all of them by the same.
    parameters = dict(model.named_parameters(remove_duplicate=False))
    loaded = {
        id(parameters[key]): nn.Parameter(to_its_device(tensor, parameters[key]), requires_grad=False)
        for key, tensor in floats.items()
    }
    swapped = {
        id(linear): to_its_device(W8A8Linear(**layers[name]).train(linear.training), linear.weight)
        for name, linear in linears.items()
    }
    for path, module in modules.items():
        parent, _, leaf = path.rpartition(".")
        if id(module) in swapped:
            setattr(modules[parent], leaf, swapped[id(module)])
            continue
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if id(parameter) in loaded:
                module.register_parameter(name, loaded[id(parameter)])
    return model


def _check_fit(
    model: nn.Module,
    linears: Mapping[str, nn.Linear],
    layers: Mapping[str, Mapping[str, Tensor]],
    floats: Mapping[str, Tensor],
) -> None:
    """ValueError unless the export holds exactly the parameters of `model`, in their shapes."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    given = {
        f"{name}.{part}": parts[part] for name, parts in layers.items() for part in ("weight", "bias") if part in parts
    }
    given |= floats
    misshapen = [
        f"{key} {list(tensor.shape)}, must be {list(parameters[key].shape)}"
        for key, tensor in given.items()
        if key in parameters and parameters[key].shape != tensor.shape
    ]
    covered = {id(parameters[key]) for key in given if key in parameters}  # tied parameters, under any of their names
    missing = [key for key, parameter in parameters.items() if id(parameter) not in covered]
    unexpected = [key for key in given if key not in parameters]
    unexpected += [
        f"{name} (not a linear)" for name in layers if name not in linears and f"{name}.weight" in parameters
    ]
    if missing or unexpected or misshapen:
        raise ValueError(
            f"this export is not one of this {type(model).__name__}: missing {missing[:8]}, "
            f"unexpected {unexpected[:8]}, misshapen {misshapen[:8]}"
        )
    if meta := [name for name, buffer in model.named_buffers() if buffer.is_meta]:
        raise ValueError(f"buffers on the meta device, which no export holds: {', '.join(meta[:8])}")
