"""A stand-in for torch_npu on a CPU, made at test time of the vendor's own wheel: its schemas and its Meta kernels.

The wheel is read, never imported (torch_npu needs CANN), and no part of it is kept here. Whatever the schemas do not
have (a name, a keyword) raises by itself, and every call passes the vendor's shape and dtype checks on meta tensors.
The arithmetic behind them is ours, after the operators' documentation; it says nothing about an NPU's own rounding.
"""

from __future__ import annotations

import contextlib
import re
import sys
import zipfile
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

SCHEMAS = "torch_npu/csrc/aten/npu_native_functions_by_codegen.yaml"
META = "torch_npu/op_plugin/meta/_meta_registrations.py"
# Numbers of the vendor's dtypes that torch has no ScalarType for.
DTYPES = {"int4": 285, "hifloat8": 290, "float8_e5m2": 291, "float8_e4m3fn": 292, "float4_e2m1fn_x2": 296}
DTYPES |= {"float8_e8m0fnu": 293}
calls: list[str] = []  # operators that ran, in order
_libraries: list[torch.library.Library] = []  # registrations live as long as these


def install(wheel: Path) -> None:
    """Put `torch_npu` into sys.modules; `wheel` is the .whl file or the folder that it was unpacked into."""
    schemas, meta = read(wheel, SCHEMAS), read(wheel, META)
    library = torch.library.Library("npu", "DEF")
    for schema in re.findall(r"^\s*-?\s*func: ([^\n]+)", schemas, re.MULTILINE):
        with contextlib.suppress(RuntimeError):  # names of aten's own, and repeated ones
            library.define(schema)
    cpu = torch.library.Library("npu", "IMPL", "CPU")
    cpu.impl("npu_quantize", npu_quantize)
    cpu.impl("npu_quant_matmul", npu_quant_matmul)
    _libraries.extend([library, cpu])

    npu = module("torch_npu", **DTYPES)
    npu.__getattr__ = lambda name: getattr(torch.ops.npu, name)  # type: ignore[method-assign]
    device = {"device_count": lambda: 0, "is_available": lambda: False, "empty_cache": lambda: None}
    module("torch_npu.npu", **device)
    module("torch_npu.npu.config")
    module("torch_npu.npu.utils", get_cann_version=lambda *_: "8.5.0")
    module("torch_npu.npu._backends", get_soc_version=lambda: 220)
    module("torch_npu.utils")
    codes = type("ErrCode", (), {"__getattr__": lambda self, name: name})()
    module("torch_npu.utils._error_code", ErrCode=codes, ops_error=lambda code: f" [{code}]")
    torch.npu = sys.modules["torch_npu.npu"]  # type: ignore[attr-defined]
    Tensor.npu = lambda self, *_, **__: self  # type: ignore[attr-defined]
    exec(compile(meta, META, "exec"), {"__name__": "meta"})  # registers itself


def read(wheel: Path, file: str) -> str:
    """A text file of the wheel."""
    if wheel.is_dir():
        return (wheel / file).read_text()
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(file).decode()


def module(name: str, **contents: Any) -> ModuleType:
    """A module under its dotted name, which its parent gets as an attribute."""
    made = ModuleType(name)
    made.__dict__.update(contents, __path__=[], __spec__=ModuleSpec(name, None))
    sys.modules[name] = made
    parent, _, leaf = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], leaf, made)
    return made


def checked(operator: str, *args: Any, **kwargs: Any) -> Tensor:
    """The empty result that the vendor's Meta kernel gives, after its checks."""
    calls.append(operator)

    def meta(x: Any) -> Any:
        return x.to("meta") if isinstance(x, Tensor) else x

    out = getattr(torch.ops.npu, operator)(*map(meta, args), **{key: meta(x) for key, x in kwargs.items()})
    return torch.empty(out.shape, dtype=out.dtype)


def npu_quantize(
    self: Tensor, scales: Tensor, zero_points: Tensor | None, dtype: int, axis: int = 1, div_mode: bool = True
) -> Tensor:
    """clamp(round(self / scales) + zero_points), scales and zero points along `axis`."""
    out = checked("npu_quantize", self, scales, zero_points, dtype, axis, div_mode)
    assert out.dtype == torch.int8 and axis in (-1, self.dim() - 1) and div_mode and zero_points is not None
    assert self.dtype in (torch.float16, torch.bfloat16, torch.float32)
    assert scales.dtype in (torch.float32, torch.bfloat16) and scales.shape == (self.shape[-1],)
    assert zero_points.dtype in (torch.int8, torch.uint8, torch.int32, torch.bfloat16)
    assert self.dtype != torch.bfloat16 or (scales.dtype == zero_points.dtype == torch.bfloat16)
    q = torch.round(self.float() / scales.float()) + zero_points.float()
    return out.copy_(q.clamp(-128, 127))


def npu_quant_matmul(x1: Tensor, x2: Tensor, scale: Tensor, **kwargs: Any) -> Tensor:
    """(x1 @ x2 + bias) * scale; a scale in int64 holds the bits of a float32 in its low word."""
    out = checked("npu_quant_matmul", x1, x2, scale, **kwargs)
    bias = kwargs["bias"]
    assert x1.dtype == x2.dtype == torch.int8 and bias.dtype == torch.int32
    assert scale.dtype in (
        (torch.int64, torch.float32) if out.dtype == torch.float16 else (torch.float32, torch.bfloat16)
    )
    deq = scale.to(torch.int32).view(torch.float32) if scale.dtype == torch.int64 else scale.float()
    total = (x1.double() @ x2.double()).to(torch.int32) + bias
    return out.copy_(total * deq)
