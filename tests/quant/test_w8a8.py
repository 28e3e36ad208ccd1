from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quant.toy_dit import KEEP_FLOAT, ToyDiT, input_ranges, quantize, toy_call
from torch import nn

from runner.quant import scheme
from runner.quant.layers import select
from runner.quant.observers import Range
from runner.quant.swap import apply
from runner.quant.w8a8 import W8A8Linear, quantize_linear

EPS = np.float32(2.0**-23)


def restated(weight: np.ndarray, bias: np.ndarray | None, low: float, high: float, dtype: torch.dtype) -> dict:
    """The formulas once more, in numpy: float32 for scales, float64 and integers for all else."""
    s_w = np.maximum(np.abs(weight).max(1, keepdims=True) / np.float32(127), EPS)
    w_q = np.clip(np.rint(weight / s_w), -128, 127).astype(np.int64)
    low32, high32 = np.float32(min(low, 0)), np.float32(max(high, 0))
    s_x = np.maximum((high32 - low32) / np.float32(255), EPS)
    s_x = np.float32(torch.tensor(s_x).to(dtype).float())
    z = int(np.clip(-128 - np.rint(low32 / s_x), -128, 127))
    deq = (s_x * s_w[:, 0]).astype(np.float32)
    ratio = np.zeros(len(deq)) if bias is None else bias.astype(np.float64) / deq.astype(np.float64)
    quant_bias = np.rint(ratio - z * w_q.sum(1)).astype(np.int64)
    return {"s_w": s_w, "w_q": w_q, "s_x": s_x, "z": z, "deq": deq, "quant_bias": quant_bias}


def linear(n: int, k: int, dtype: torch.dtype, *, bias: bool = True, seed: int = 0, spread: float = 0.1) -> nn.Linear:
    torch.manual_seed(seed)
    layer = nn.Linear(k, n, bias=bias)
    nn.init.normal_(layer.weight, std=spread)
    return layer.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
@settings(max_examples=25, deadline=None)
@given(
    low=st.floats(-50, 10, width=32),
    span=st.floats(0.125, 60, width=32),
    seed=st.integers(0, 50),
    zero_row=st.booleans(),
)
def test_every_part_is_bit_equal_to_the_formulas(
    dtype: torch.dtype, bias: bool, low: float, span: float, seed: int, zero_row: bool
) -> None:
    layer = linear(6, 40, dtype, bias=bias, seed=seed)
    if zero_row:
        layer.weight.data[2] = 0
        if bias:
            layer.bias.data[2] = 0
    parts = quantize_linear("layer", layer, Range(low, low + span))
    b = layer.bias.detach().float().numpy() if bias else None
    want = restated(layer.weight.detach().float().numpy(), b, low, low + span, dtype)
    assert np.array_equal(parts["weight"].numpy(), want["w_q"])
    assert torch.equal(parts["weight_scale"], torch.from_numpy(want["s_w"]).to(dtype))
    assert not parts["weight_offset"].any() and parts["weight_offset"].shape == (6, 1)
    assert parts["input_scale"].dtype == dtype and float(parts["input_scale"]) == want["s_x"]
    assert parts["input_offset"].dtype == dtype and int(parts["input_offset"]) == want["z"]
    assert np.array_equal(parts["quant_bias"].numpy(), want["quant_bias"])
    stored = parts["deq_scale"]
    if dtype == torch.bfloat16:
        assert stored.dtype == torch.float32
    else:
        assert stored.dtype == torch.int64 and (stored >= 0).all() and (stored < 2**31).all()
        stored = stored.to(torch.int32).view(torch.float32)
    assert np.array_equal(stored.numpy(), want["deq"])
    assert ("bias" in parts) == bias


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_layer_computes_the_integer_formula(dtype: torch.dtype) -> None:
    """Against int64 and float64, for inputs inside and beyond the range."""
    layer = linear(24, 100, dtype)
    x = (torch.randn(3, 7, 100) * 2).to(dtype)
    quantized = W8A8Linear(**quantize_linear("layer", layer, Range(-4.0, 5.0)))
    bias = layer.bias.detach().float().numpy()
    want = restated(layer.weight.detach().float().numpy(), bias, -4.0, 5.0, dtype)
    x_q = np.clip(np.rint(x.float().numpy() / want["s_x"]) + want["z"], -128, 127).astype(np.int64)
    total, deq = x_q @ want["w_q"].T, want["deq"].astype(np.float64)
    exact = (total + want["quant_bias"]) * deq
    size = (np.abs(total) + np.abs(want["quant_bias"])) * deq
    y = quantized(x)
    assert y.dtype == dtype and y.shape == (3, 7, 24)
    unit = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[dtype]
    assert (np.abs(y.double().numpy() - exact) <= 2.01 * 2.0**-24 * size + 1.01 * unit * np.abs(exact)).all()
    # and that is close to the float layer where nothing is clipped
    small = x.clamp(-3.9, 4.9)
    error = (quantized(small).float() - layer(small).float()).norm() / layer(small).float().norm()
    assert error < 0.02


@pytest.fixture
def exported(toy: ToyDiT) -> Callable:
    def make(dtype: torch.dtype = torch.float32) -> tuple[ToyDiT, dict, dict, tuple[str, ...]]:
        model = toy.to(dtype)
        layers = select(model, ["*"], KEEP_FLOAT).quantized
        ranges = input_ranges(model, [toy_call(seed, dtype) for seed in range(3)])
        return model, *quantize(model, ranges, layers), layers

    return make


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_description_is_flat_in_module_order_and_whole(exported: Callable, dtype: torch.dtype) -> None:
    model, tensors, description, layers = exported(dtype)
    assert list(description)[0] == "model_quant_type" and description["model_quant_type"] == "W8A8"
    assert list(tensors) == list(description)[1:]
    q = "blocks.0.attn.to_k"
    own = [key for key in tensors if key.startswith(f"{q}.")]
    assert own == [
        f"{q}.{part}"
        for part in (
            "weight",
            "bias",
            "weight_scale",
            "weight_offset",
            "input_scale",
            "input_offset",
            "quant_bias",
            "deq_scale",
        )
    ]
    assert {key: description[key] for key in own if key.endswith("bias")} == {
        f"{q}.bias": "FLOAT",
        f"{q}.quant_bias": "W8A8",
    }
    assert f"{layers[1]}.bias" not in tensors  # to_q has none
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[0] not in layers:
            assert description[name] == "FLOAT"
            assert torch.equal(tensors[name], parameter) and tensors[name].dtype == dtype
    order = list(dict.fromkeys(key.rpartition(".")[0] for key in tensors))
    modules = [name for name, _ in model.named_modules()]
    assert order == sorted(order, key=modules.index)


@pytest.mark.parametrize("meta", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_apply_loads_everything_into_another_model(exported: Callable, dtype: torch.dtype, meta: bool) -> None:
    model, tensors, description, layers = exported(dtype)
    with torch.device("meta" if meta else "cpu"):
        other = ToyDiT()
    assert apply(other, tensors, description) is other
    assert {name for name, m in other.named_modules() if isinstance(m, W8A8Linear)} == set(layers)
    assert not any(t.is_meta for t in other.state_dict().values())
    y, y_float = other(**toy_call(1, dtype)), model(**toy_call(1, dtype))
    assert y.dtype == dtype
    assert 0 < (y - y_float).float().norm() / y_float.float().norm() < 0.05
    for key, tensor in other.state_dict().items():
        assert torch.equal(tensor, tensors[key]) and tensor.dtype == tensors[key].dtype


def test_quantize_leaves_the_model_alone(exported: Callable, toy: ToyDiT) -> None:
    before = copy.deepcopy(toy.state_dict())
    exported()
    assert all(torch.equal(before[key], tensor) for key, tensor in toy.state_dict().items())


def test_tied_parameters_are_exported_once_and_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight
            self.again = self.c  # the same module under two names

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.again(self.b(self.a(x)) + self.c(x))

    model = Tied()
    x = torch.randn(2, 4)
    tensors, description = quantize(model, {"c": Range(-3, 3)}, ["c"])
    assert "a.weight" in tensors and "b.weight" not in tensors and "again.weight" not in tensors
    other = apply(Tied(), tensors, description)
    assert other.a.weight is other.b.weight and other.again is other.c and isinstance(other.c, W8A8Linear)
    assert torch.allclose(other(x), model(x), atol=0.05)


def test_other_models_are_refused_with_names(exported: Callable) -> None:
    _, tensors, description, _ = exported()
    with pytest.raises(ValueError, match=r"unexpected \['blocks.1.attn.to_q.weight'"):
        apply(ToyDiT(depth=1), tensors, description)
    with pytest.raises(ValueError, match=r"missing \['blocks.2.scale_shift_table', 'blocks.2.attn.to_q.weight'"):
        apply(ToyDiT(depth=3), tensors, description)
    with pytest.raises(ValueError, match=r"misshapen \['pos_embed.weight \[32, 8\], must be \[64, 8\]'"):
        apply(ToyDiT(width=64), tensors, description)
    biased = ToyDiT()
    biased.blocks[0].attn.to_q = nn.Linear(32, 32)
    with pytest.raises(ValueError, match=r"missing \['blocks.0.attn.to_q.bias'\]"):
        apply(biased, tensors, description)
    with torch.device("meta"):
        buffered = ToyDiT()
        buffered.register_buffer("table", torch.zeros(3))
    with pytest.raises(ValueError, match="meta device, which no export holds: table"):
        apply(buffered, tensors, description)


def test_what_quantize_refuses(toy: ToyDiT) -> None:
    with pytest.raises(ValueError, match="not linears of ToyDiT: blocks.0"):
        quantize(toy, {}, ["blocks.0"])
    with pytest.raises(ValueError, match="no recorded range for pos_embed"):
        quantize(toy, {}, ["pos_embed"])
    toy.pos_embed.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="pos_embed: its weights are not all finite"):
        quantize(toy, {"pos_embed": Range(-1, 1)}, ["pos_embed"])
    with pytest.raises(ValueError, match="weights are torch.float64"):
        quantize_linear("x", nn.Linear(2, 2).double(), Range(-1, 1))


def test_float16_keeps_products_that_float16_cannot_hold() -> None:
    """Input and weight scales of 1e-3 and 3e-5: their product is no float16; formed in float32 nothing is lost."""
    layer = linear(64, 256, torch.float16, spread=0.001)
    x = torch.randn(32, 256, dtype=torch.float16) * 0.05
    quantized = W8A8Linear(**quantize_linear("layer", layer, Range(float(x.min()), float(x.max()))))
    assert (quantized.dequantization_scale() < 6e-8).any()  # zero in float16
    exact = nn.functional.linear(x.float(), layer.weight.float(), layer.bias.float())
    assert (quantized(x.float()) - exact).norm() / (exact - layer.bias.float()).norm() < 0.03


def test_float16_scales_that_would_be_lost_are_refused_by_name() -> None:
    layer = linear(8, 16, torch.float16)
    layer.weight.data[5] = 6e-6 * torch.arange(16)
    message = r"blocks.0.ff: weight_scale .* of output channel 5 does not fit float16 .*use model.dtype=bf16"
    with pytest.raises(ValueError, match=message):
        quantize_linear("blocks.0.ff", layer, Range(-1, 1))
    assert quantize_linear("blocks.0.ff", layer.bfloat16(), Range(-1, 1))
    with pytest.raises(ValueError, match="layer: input_scale 7.84e-07 does not fit float16"):
        quantize_linear("layer", linear(8, 16, torch.float16), Range(-0.0001, 0.0001))
    with pytest.raises(ValueError, match=r"layer: input_scale 7.84e\+04 does not fit float16"):
        quantize_linear("layer", linear(8, 16, torch.float16), Range(-1e7, 1e7))


def test_sums_that_could_overflow_are_refused_by_name() -> None:
    layer = linear(8, 16, torch.float32)
    layer.bias.data[3] = 1e6
    with pytest.raises(ValueError, match="layer: quant_bias .* of output channel 3 overflows 32 bits"):
        quantize_linear("layer", layer, Range(-0.001, 0.001))


def test_an_input_that_is_always_zero_still_gives_the_bias() -> None:
    layer = linear(8, 16, torch.bfloat16)
    layer.bias.data.mul_(1e-3)
    quantized = W8A8Linear(**quantize_linear("layer", layer, Range(0, 0)))
    y = quantized(torch.zeros(2, 16, dtype=torch.bfloat16))
    torch.testing.assert_close(y, layer.bias.expand(2, 8), rtol=2**-7, atol=1e-12)


def test_schemes_by_name() -> None:
    assert scheme("w8a8").quantize_linear is quantize_linear
    with pytest.raises(ValueError, match="quant.scheme=w4a4: there is no such scheme yet; there is w8a8"):
        scheme("w4a4")
