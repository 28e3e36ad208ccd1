from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from runner.quant import kernels

NAMES = [name for name in kernels.KERNELS if kernels.exact(name, "cpu")]


def operands(m: int, k: int, n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    xq = torch.randint(-128, 128, (m, k), generator=generator, dtype=torch.int8)
    weight = torch.randint(-128, 128, (n, k), generator=generator, dtype=torch.int8)
    quant_bias = torch.randint(-(10**6), 10**6, (n,), generator=generator, dtype=torch.int32)
    deq_scale = torch.rand(n, generator=generator) * 1e-3 + 1e-6
    return xq, weight, quant_bias, deq_scale


def expected(xq: Tensor, weight: Tensor, quant_bias: Tensor) -> np.ndarray:
    return xq.numpy().astype(np.int64) @ weight.numpy().astype(np.int64).T + quant_bias.numpy()


def test_there_is_always_a_kernel_and_the_fast_one_where_the_cpu_has_it() -> None:
    assert "float_slices" in NAMES
    assert kernels.choose("cpu") == NAMES[0]
    assert not kernels.exact("onednn", "cuda")


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(m=st.integers(1, 40), k=st.integers(1, 80), n=st.integers(1, 40), seed=st.integers(0, 99))
def test_integers_are_exact_at_any_size(name: str, m: int, k: int, n: int, seed: int) -> None:
    """With power-of-two scales no rounding hides anything: every kernel gives the very same integers."""
    xq, weight, quant_bias, _ = operands(m, k, n, seed)
    scale = torch.full((n,), 2.0**-12)
    matmul = kernels.KERNELS[name](weight, quant_bias, scale)
    got = matmul(xq, torch.float32)
    assert torch.equal(matmul(xq[None, :, None], torch.float32), got[None, :, None])
    want = expected(xq, weight, quant_bias)
    assert np.array_equal(got.numpy(), (want * 2.0**-12).astype(np.float32))  # all below 2^24: exact in float32


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(160, 144, 144), (33, 2304, 96), (7, 4609, 8)])
def test_float32_rounds_at_most_twice(name: str, shape: tuple[int, int, int]) -> None:
    xq, weight, quant_bias, deq_scale = operands(*shape)
    got = kernels.KERNELS[name](weight, quant_bias, deq_scale)(xq, torch.float32).double().numpy()
    exact = expected(xq, weight, quant_bias) * deq_scale.double().numpy()
    product = (expected(xq, weight, quant_bias) - quant_bias.numpy()) * deq_scale.double().numpy()
    size = np.abs(product) + np.abs(quant_bias.numpy() * deq_scale.double().numpy())
    assert (np.abs(got - exact) <= 2 * 2.0**-24 * size * (1 + 1e-6)).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_output_dtype(name: str, dtype: torch.dtype) -> None:
    xq, weight, quant_bias, deq_scale = operands(9, 64, 24)
    bound = kernels.KERNELS[name](weight, quant_bias, deq_scale)
    got, full = bound(xq, dtype), bound(xq, torch.float32)
    assert got.dtype == dtype
    torch.testing.assert_close(got, full.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=0)


def test_a_kernel_that_saturates_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPUs without VNNI add pairs of unsigned products in 16 bits; an operator that is not there raises."""

    def saturating(weight: Tensor, quant_bias: Tensor, deq_scale: Tensor) -> kernels.Matmul:
        def matmul(xq: Tensor, dtype: torch.dtype) -> Tensor:
            products = (xq[:, None].int() + 128) * weight.int()
            pairs = products.unflatten(-1, (-1, 2)).sum(-1).clamp(-(2**15), 2**15 - 1)
            return (pairs.sum(-1) - 128 * weight.int().sum(-1) + quant_bias) * deq_scale

        return matmul

    def absent(weight: Tensor, quant_bias: Tensor, deq_scale: Tensor) -> kernels.Matmul:
        return torch.ops.onednn.no_such_operator(weight)

    fake = {"absent": absent, "saturating": saturating, "float_slices": kernels.float_slices}
    monkeypatch.setattr(kernels, "KERNELS", fake)
    kernels.choose.cache_clear()
    try:
        assert kernels.choose("cpu") == "float_slices"
    finally:
        kernels.choose.cache_clear()


@pytest.mark.parametrize("target", [torch.int8, torch.uint8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("rows", [3, 1 + kernels.CHUNK // 64])
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
