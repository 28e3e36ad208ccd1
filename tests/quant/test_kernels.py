"""What kernels compute is held to the bare integers. What `kernels.exact` says is held to the bare operators."""

from __future__ import annotations

import itertools
import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from quant.integer_products import (
    RANGE,
    float_linear,
    integers_of,
    keeps_odd_sums,
    operands,
    raw_int_mm,
    raw_onednn,
    restated,
    right,
)
from torch import Tensor

from runner.quant.kernels import static_int8 as kernels
from runner.quant.kernels.products import ALIGNED, COMMON, FUSED, LARGEST, Bound, _carried, _sizes
from runner.quant.kernels.quantizer import CHUNK
from runner.quant.w8a8 import W8A8Linear, quantize_linear

HERE = [name for name in FUSED | COMMON if kernels.exact(name, "cpu")]
SATURATING = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


def test_a_kernel_is_used_where_its_operator_is_right_and_nowhere_else() -> None:
    """The oracle is the operator itself: oneDNN as it is, oneDNN for pairs of weights within 128, torch._int_mm."""
    if torch.backends.mkldnn.is_available():
        assert kernels.exact("onednn", "cpu") == right(raw_onednn)
        assert kernels.exact("carries", "cpu") == (
            right(raw_onednn, lambda w: w.clamp(-64, 64)) and keeps_odd_sums(raw_onednn)
        )
    assert kernels.exact("int_mm", "cpu") == right(raw_int_mm)
    assert kernels.exact("float_kept", "cpu")
    assert not kernels.exact("onednn", "cuda") and not kernels.exact("carries", "cuda")
    chosen = kernels.candidates("cpu")
    assert chosen == ("onednn",) if right(raw_onednn) else "float_kept" in chosen and "onednn" not in chosen


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, int, int]:
    k = draw(st.one_of(st.integers(1, 200), st.integers(1020, 1100), st.integers(2040, 2300)))
    return draw(st.integers(1, 40)), k, draw(st.integers(1, 40))


@pytest.mark.parametrize("name", [name for name in HERE if name in COMMON])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@settings(max_examples=30, deadline=None)
@given(
    shape=shapes(),
    seed=st.integers(0, 99),
    extreme=st.booleans(),
    scale=st.floats(2.0**-30, 2.0**10),
    largest_bias=st.sampled_from([0, 10**3, 10**6, 2**23, 2**24 + 1, 2**30]),
)
@example(shape=(1, 1, 1), seed=0, extreme=True, scale=1e-3, largest_bias=10**6)
@example(shape=(3, 4609, 2), seed=1, extreme=True, scale=1e-3, largest_bias=10**6)
def test_the_common_group_gives_the_restated_bytes(
    name: str,
    dtype: torch.dtype,
    shape: tuple[int, int, int],
    seed: int,
    extreme: bool,
    scale: float,
    largest_bias: int,
) -> None:
    xq, weight, quant_bias, deq_scale = operands(*shape, seed, extreme)
    if extreme and seed % 2:
        weight[0] = -128 if seed % 4 == 1 else 127
        xq[0] = -128
    quant_bias = (quant_bias.double() / 10**6 * largest_bias).to(torch.int32)
    deq_scale *= scale
    product = COMMON[name](weight, quant_bias, deq_scale).product
    want = restated(xq, weight, quant_bias, deq_scale, dtype)
    got = product(xq, dtype)
    assert got.dtype == dtype and torch.equal(got, want)
    assert torch.equal(product(xq[None, :, None], dtype), want[None, :, None])


@pytest.mark.parametrize("name", [name for name in HERE if name in FUSED])
@settings(max_examples=25, deadline=None)
@given(m=st.integers(1, 40), k=st.integers(1, 80), n=st.integers(1, 40), seed=st.integers(0, 99))
def test_the_fused_group_has_exact_integers(name: str, m: int, k: int, n: int, seed: int) -> None:
    """With power-of-two scales no rounding hides anything."""
    xq, weight, quant_bias, _ = operands(m, k, n, seed)
    product = FUSED[name](weight, quant_bias, torch.full((n,), 2.0**-12)).product
    got = product(xq, torch.float32)
    assert torch.equal(product(xq[None, :, None], torch.float32), got[None, :, None])
    want = integers_of(xq, weight, quant_bias)
    assert np.array_equal(got.numpy(), (want * 2.0**-12).astype(np.float32))  # all below 2^24: exact in float32


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("shape", [(160, 144, 144), (33, 2304, 96), (7, 4609, 8)])
def test_float32_rounds_at_most_twice(name: str, shape: tuple[int, int, int]) -> None:
    xq, weight, quant_bias, deq_scale = operands(*shape)
    got = (FUSED | COMMON)[name](weight, quant_bias, deq_scale).product(xq, torch.float32).double().numpy()
    exact = integers_of(xq, weight, quant_bias) * deq_scale.double().numpy()
    bias = quant_bias.numpy() * deq_scale.double().numpy()
    size = np.abs(exact - bias) + np.abs(bias)
    assert (np.abs(got - exact) <= 2 * 2.0**-24 * size * (1 + 1e-6)).all()


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_output_dtype(name: str, dtype: torch.dtype) -> None:
    xq, weight, quant_bias, deq_scale = operands(9, 64, 24)
    product = (FUSED | COMMON)[name](weight, quant_bias, deq_scale).product
    got, full = product(xq, dtype), product(xq, torch.float32)
    assert got.dtype == dtype
    torch.testing.assert_close(got, full.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=0)


@settings(max_examples=50, deadline=None)
@given(k=st.integers(1, 300), n=st.integers(1, 6), seed=st.integers(0, 99), kind=st.sampled_from(["any", "ends", "+"]))
def test_carried_columns_never_saturate_and_multiply_to_the_same(k: int, n: int, seed: int, kind: str) -> None:
    xq, weight, _, _ = operands(5, k, n, seed, extreme=kind == "ends")
    if kind == "+":
        weight = torch.full_like(weight, -128 if seed % 2 else 127)
    columns, takes = _carried(weight)
    pairs = columns.int().unflatten(1, (-1, 2))
    assert pairs.sum(2).abs().max() <= 128 and columns.shape[1] <= 2 * k + 2 * len(takes) + 2 + ALIGNED
    levels = [torch.nn.functional.pad(xq.view(torch.uint8) ^ 128, (0, k % 2))]
    for take in takes:
        levels.append(take(levels[-1]))
    levels.append(levels[0].new_zeros(5, columns.shape[1] - sum(level.shape[1] for level in levels)))
    inputs = torch.cat(levels, dim=1).numpy().astype(np.int64)
    bytes_ = (xq.to(torch.int16) + 128).numpy().astype(np.int64)
    assert np.array_equal(inputs @ columns.numpy().astype(np.int64).T, bytes_ @ weight.numpy().astype(np.int64).T)


@settings(max_examples=30, deadline=None)
@given(k=st.integers(1, 3000), seed=st.integers(0, 9), extreme=st.booleans())
def test_slices_are_as_long_as_float32_holds_their_sums(k: int, seed: int, extreme: bool) -> None:
    _, weight, _, _ = operands(1, k, 3, seed, extreme)
    limit, start = LARGEST // 128, 0
    sizes = _sizes(weight, limit)
    assert sum(sizes) == k
    for i, size in enumerate(sizes):
        held = weight[:, start : start + size + 64].int().abs().sum(1).max()
        assert weight[:, start : start + size].int().abs().sum(1).max() <= limit
        assert i == len(sizes) - 1 or held > limit  # not one block longer
        start += size


@pytest.fixture
def anew() -> Iterator[None]:
    kernels.forget()
    yield
    kernels.forget()


@pytest.fixture
def common(monkeypatch: pytest.MonkeyPatch, anew: None) -> None:
    """As on a processor where oneDNN's fused kernel is not exact."""
    exact = kernels.exact
    monkeypatch.setattr(kernels, "exact", lambda name, device: name not in FUSED and exact(name, device))


def test_a_kernel_that_saturates_is_not_chosen(monkeypatch: pytest.MonkeyPatch, anew: None) -> None:
    """CPUs without VNNI add pairs of unsigned products in 16 bits; an operator that is not there raises."""

    def saturating(weight: Tensor, quant_bias: Tensor, deq_scale: Tensor) -> Bound:
        def product(xq: Tensor, dtype: torch.dtype) -> Tensor:
            products = (xq[:, None].int() + 128) * weight.int()
            pairs = products.unflatten(-1, (-1, 2)).sum(-1).clamp(-(2**15), 2**15 - 1)
            return (pairs.sum(-1) - 128 * weight.int().sum(-1) + quant_bias) * deq_scale

        return Bound(product, 0)

    def absent(weight: Tensor, quant_bias: Tensor, deq_scale: Tensor) -> Bound:
        return torch.ops.onednn.no_such_operator(weight)

    monkeypatch.setattr(kernels, "FUSED", {"absent": absent, "saturating": saturating})
    monkeypatch.setattr(
        kernels, "COMMON", {"absent": absent, "saturating": saturating, "float_kept": COMMON["float_kept"]}
    )
    assert kernels.candidates("cpu") == ("float_kept",)
    monkeypatch.setattr(kernels, "COMMON", {"saturating": saturating})
    kernels.forget()
    with pytest.raises(RuntimeError, match="no kernel multiplies 8-bit integers exactly on cpu"):
        kernels.candidates("cpu")


def test_the_fastest_is_chosen_once_a_shape_and_told(
    monkeypatch: pytest.MonkeyPatch, common: None, caplog: pytest.LogCaptureFixture
) -> None:
    timed, seconds = [], {"float_kept": 2.0, "int_mm": 1.0, "carries": 30.0}

    def times(names: tuple[str, ...], weight: Tensor, *_: object) -> dict[str, float]:
        timed.append(tuple(weight.shape))
        return {name: seconds[name] for name in names}

    monkeypatch.setattr(kernels, "exact", lambda name, device: name in COMMON)
    monkeypatch.setattr(kernels, "_timed", times)
    before = torch.random.get_rng_state()
    with caplog.at_level(logging.INFO):
        for rows in (100, 128, 65, 129):
            _, weight, quant_bias, deq_scale = operands(1, 48, 40)
            assert kernels.choose(weight, quant_bias, deq_scale, rows, torch.float32) == "int_mm"
    assert timed == [(128, 256), (40, 48), (40, 48)]  # who is hopeless on a few rows; two buckets of rows
    assert kernels.candidates("cpu") == ("int_mm", "float_kept")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert caplog.messages == [
        f"W8A8 linears {rows} x 48 -> 40 in float32 on cpu: int_mm (int_mm 1000.00 ms, float_kept 2000.00 ms)"
        for rows in (128, 256)
    ]
    told = json.loads(json.dumps(kernels.choices()))
    assert told[0] == {
        "device": "cpu",
        "rows": 128,
        "k": 48,
        "n": 40,
        "dtype": "float32",
        "kernel": "int_mm",
        "seconds": {"int_mm": 1.0, "float_kept": 2.0},
    }


def test_all_that_is_timed_is_one_of_those_that_run_here(common: None) -> None:
    _, weight, quant_bias, deq_scale = operands(1, 144, 576)
    kernel = kernels.choose(weight, quant_bias, deq_scale, 160, torch.bfloat16)
    (told,) = kernels.choices()
    assert told["kernel"] == kernel == min(told["seconds"], key=told["seconds"].get)
    assert set(told["seconds"]) == set(kernels.candidates("cpu")) <= set(COMMON)
    assert all(0 < seconds < 1 for seconds in told["seconds"].values())


def test_without_onednn_all_of_it_works(monkeypatch: pytest.MonkeyPatch, anew: None) -> None:
    """As in builds of torch without it."""

    def absent(*_: object) -> None:
        raise AssertionError("oneDNN is off")

    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr("runner.quant.kernels.products._qlinear", absent)
    assert set(kernels.candidates("cpu")) <= {"int_mm", "float_kept"}
    xq, weight, quant_bias, deq_scale = operands(12, 100, 24)
    scale, x = torch.tensor([0.25]), xq.float() * 0.25
    linear, _ = kernels.bind(weight, quant_bias, deq_scale, scale, 0, x)
    assert torch.equal(linear(x), restated(xq, weight, quant_bias, deq_scale, torch.float32))


def test_where_onednn_saturates_the_same_bytes_come_out(tmp_path: Path) -> None:
    """A process whose oneDNN has no VNNI rejects the plain kernel, and computes what this process does."""
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        pytest.skip("oneDNN saturates on x86 alone")
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), str(root / "tests")])
    script, told = Path(__file__).with_name("saturating.py"), tmp_path / "told"
    subprocess.run([sys.executable, script, told], check=True, env=os.environ | SATURATING | {"PYTHONPATH": path})
    found = torch.load(told)
    assert not found["plain onednn is right"] and not found["exact"]["onednn"]
    assert found["exact"]["carries"] and found["exact"]["float_kept"]
    assert "onednn" not in found["candidates"] and {"carries", "float_kept"} <= set(found["candidates"])
    for name, shape, dtype, got in found["products"]:
        xq, *layer = operands(*shape, seed=3, extreme=shape[0] % 2 == 1)
        assert torch.equal(got, restated(xq, *layer, dtype)), (name, shape, dtype)
        if kernels.exact(name, "cpu"):
            assert torch.equal(got, COMMON[name](*layer).product(xq, dtype)), (name, shape, dtype)
    assert {(name, dtype) for name, _, dtype, _ in found["products"]} >= set(
        itertools.product(("carries", "float_kept"), (torch.float32, torch.bfloat16, torch.float16))
    )
    (y, packed_bytes), (xq, *layer) = found["misaligned"], operands(1, 167, 7, seed=2)
    assert packed_bytes == 4 * 167 * 7  # what oneDNN gets wrong is found, and left to float32
    assert torch.equal(y, restated(xq, *layer, torch.float32))
    linear, x = float_linear()
    y, here = found["layer"], W8A8Linear(**quantize_linear("layer", linear, RANGE))
    assert found["kernel"] in COMMON
    torch.testing.assert_close(y, here(x), rtol=2.0**-20, atol=2.0**-20)
    assert (y - linear(x)).norm() / linear(x).norm() < 0.02


@pytest.mark.parametrize("target", [torch.int8, torch.uint8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("rows", [3, 1 + CHUNK // 64])
def test_inputs_are_quantized_by_the_formula(target: torch.dtype, dtype: torch.dtype, rows: int) -> None:
    """Division, then half-to-even, then the offset; ties, clipping and strides included."""
    generator = torch.Generator().manual_seed(1)
    x = (torch.randn(rows, 64, generator=generator) * 2).to(dtype)
    ties = torch.arange(-300, 301) + 0.5
    x.view(-1)[:187] = (ties[::3][:187] * 0.03125).to(dtype)
    x[-1, :8] = torch.tensor([0.5, 1.5, -0.5, -2.5, 1e4, -1e4, 0.0, 2.5]) * 0.03125
    x[-1, -2:] = torch.tensor([torch.inf, -torch.inf])
    for scale, offset in [(0.03125, 3), (0.03125, -2), (0.0331, -128), (0.017, 127), (0.02, 0)]:
        s = torch.tensor([scale])
        want = np.rint((x if dtype == torch.float64 else x.float()).numpy() / s.numpy()) + offset
        want = np.clip(want, -128, 127).astype(np.int16) + (128 if target == torch.uint8 else 0)
        for view in (x, x.repeat_interleave(2, dim=1)[:, ::2], x.t().contiguous().t()):
            got = kernels.input_quantizer(s, offset, target)(view)
            assert got.dtype == target and got.is_contiguous()
            assert np.array_equal(got.numpy(), want)
