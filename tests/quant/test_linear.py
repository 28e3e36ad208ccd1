from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from runner.quant.kernels import static_int8 as kernels
from runner.quant.kernels.products import COMMON, FUSED
from runner.quant.linear import computed_with
from runner.quant.observers import Range
from runner.quant.w8a8 import W8A8Linear, quantize_linear

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def make(dtype: torch.dtype = torch.bfloat16, seed: int = 0, k: int = 48, n: int = 40) -> W8A8Linear:
    torch.manual_seed(seed)
    return W8A8Linear(**quantize_linear("layer", nn.Linear(k, n).to(dtype), Range(-3.1, 4.3)))


def through_torch_save(layer: nn.Module) -> nn.Module:
    stream = io.BytesIO()
    torch.save(layer, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


def through_a_state_dict(layer: W8A8Linear) -> nn.Module:
    other = make(layer.input_scale.dtype, seed=1)
    other(torch.zeros(1, 48))  # pack its own weights first
    other.load_state_dict(layer.state_dict())
    return other


TREATMENTS: dict[str, Callable[[W8A8Linear], nn.Module]] = {
    "half": lambda layer: layer.half(),
    "bfloat16": lambda layer: layer.bfloat16(),
    "float": lambda layer: layer.float(),
    "double": lambda layer: layer.double(),
    "to dtype": lambda layer: layer.to(torch.float16),
    "to device and dtype": lambda layer: layer.to("cpu", torch.float16),
    "type": lambda layer: layer.type(torch.float16),
    "to_empty of a parent that casts": lambda layer: nn.Sequential(layer).half().to(torch.float32)[0],
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
    "torch.save": through_torch_save,
    "state_dict": through_a_state_dict,
    "share_memory": lambda layer: layer.share_memory(),
    "channels_last": lambda layer: layer.to(memory_format=torch.channels_last),
    "drop_packed": lambda layer: layer.drop_packed() or layer,
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("treatment", TREATMENTS)
def test_nothing_changes_what_it_computes(dtype: torch.dtype, treatment: str) -> None:
    layer = make(dtype)
    x = torch.randn(5, 48)
    before, buffers = layer(x), {name: b.clone() for name, b in layer.named_buffers()}
    treated = TREATMENTS[treatment](layer)
    assert torch.equal(treated(x), before)
    for name, buffer in treated.named_buffers():
        assert buffer.dtype == buffers[name].dtype and torch.equal(buffer, buffers[name])
    assert sum(1 for _ in treated.parameters()) == 0


def test_moving_to_another_device_moves_bits() -> None:
    """The meta device stands for any other: everything goes along, nothing changes dtype."""
    moved = make().to("meta", torch.float16)
    assert all(b.is_meta for b in moved.buffers())
    assert moved.input_scale.dtype == torch.bfloat16 and moved.deq_scale.dtype == torch.float32
    empty = moved.to_empty(device="cpu")
    empty.load_state_dict(make().state_dict())
    x = torch.randn(2, 48)
    assert torch.equal(empty(x), make()(x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_leading_shape_and_dtype(dtype: torch.dtype) -> None:
    layer = make()
    x = torch.randn(2, 3, 4, 48).to(dtype)
    y = layer(x)
    assert y.shape == (2, 3, 4, 40) and y.dtype == dtype
    assert torch.equal(layer(x[1, 2, 3]), y[1, 2, 3])
    assert torch.equal(layer(x.transpose(0, 2)), y.transpose(0, 2))
    assert layer(x[:0]).shape == (0, 3, 4, 40)


def test_inputs_are_left_alone_and_wrong_widths_refused() -> None:
    layer = make()
    x = torch.randn(4, 48)
    before = x.clone()
    layer(x)
    assert torch.equal(x, before)
    with pytest.raises(ValueError, match=r"a linear of 48 inputs got \[4, 96\]"):
        layer(torch.randn(4, 96))


@pytest.mark.parametrize("name", [name for name in FUSED | COMMON if kernels.exact(name, "cpu")])
def test_all_kernels_give_the_same_layer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = make()(torch.linspace(-4, 5, 96).view(2, 48))
    monkeypatch.setattr(kernels, "choose", lambda *_: name)
    got = make()(torch.linspace(-4, 5, 96).view(2, 48))
    torch.testing.assert_close(got, reference, rtol=1e-6, atol=1e-6)


def test_weights_are_packed_once() -> None:
    layer = make()
    calls = []
    bind = kernels.bind

    def counted(*operands: Any) -> tuple[Callable[[Tensor], Tensor], int]:
        calls.append(1)
        return bind(*operands)

    kernels.bind = counted
    try:
        for _ in range(3):
            layer(torch.randn(2, 48))
        assert len(calls) == 1
        layer.half()(torch.randn(2, 48))
        assert len(calls) == 2
    finally:
        kernels.bind = bind


def test_the_weight_it_computes_with() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(48, 40).bfloat16()
    weight = make().dequantized_weight()
    step = linear.weight.float().abs().amax(1, keepdim=True) / 127
    assert ((weight - linear.weight.float()).abs() <= step / 2 * (1 + 1e-5)).all()
    assert repr(make()) == "W8A8Linear(in_features=48, out_features=40, bias=True)"


def test_what_kernels_hold_is_told_and_said_where_it_is_much(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = nn.Sequential(make(), make(k=40))
    for name, factor in (("onednn", 1), ("float_kept", 4)):
        if not kernels.exact(name, "cpu"):
            continue
        monkeypatch.setattr(kernels, "choose", lambda *_, name=name: name)
        for layer in model:
            layer.drop_packed()
        model(torch.randn(3, 48))
        told, weights = computed_with(model), 40 * 48 + 40 * 40
        assert told == {"choices": kernels.choices(), "weight_bytes": weights, "packed_bytes": factor * weights}
    assert caplog.messages == [
        "2 quantized linears hold 0.0 MB for their kernels beside 0.0 MB of int8 weights: 4.0 times as much"
    ]
