from __future__ import annotations

import pytest
import torch
from quant.toy_dit import KEEP_FLOAT, ToyDiT, input_ranges, quantize, toy_call

from runner.quant.kernels import static_int8 as kernels
from runner.quant.kernels.products import COMMON, FUSED
from runner.quant.layers import select
from runner.quant.ledger import Ledger, count, layer_table
from runner.quant.swap import apply


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.float16])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


def quantized(toy: ToyDiT, dtype: torch.dtype) -> ToyDiT:
    model = toy.to(dtype)
    ranges = input_ranges(model, [toy_call(0, dtype)])
    return apply(ToyDiT(), *quantize(model, ranges, select(model, ["*"], KEEP_FLOAT).quantized))


def test_the_profiler_counts_what_the_table_says(toy: ToyDiT, dtype: torch.dtype) -> None:
    model, call = quantized(toy, dtype), toy_call(1, dtype)
    ledger, table = count(model, call), layer_table(model, call)
    assert ledger.int8_matmuls == sum(row.calls for row in table if row.quantized) == 11
    assert ledger.int8_flops == sum(row.flops for row in table if row.quantized)
    assert ledger.linear_flops == sum(row.flops for row in table)
    assert 0.5 < ledger.int8_share < 1

    rows = {row.layer: row for row in table}
    assert len(rows) == 16
    up = rows["blocks.0.ff.net.0"]
    assert (up.m, up.k, up.n, up.flops, up.quantized) == (48, 32, 128, 2 * 48 * 32 * 128, True)
    assert (rows["adaln_single.0"].m, rows["adaln_single.0"].quantized) == (2, False)


def test_a_float_model_has_no_integer_products(toy: ToyDiT, dtype: torch.dtype) -> None:
    model, call = toy.to(dtype), toy_call(1, dtype)
    ledger = count(model, call)
    assert ledger == Ledger(0, 0, sum(row.flops for row in layer_table(model, call)))
    assert ledger.int8_share == 0


@pytest.mark.parametrize("kernel", FUSED | COMMON)
def test_what_time_chose_changes_nothing(toy: ToyDiT, monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
    """The ledger is a result: its linears count once, however a kernel splits them and whatever it computes in."""
    if not kernels.exact(kernel, "cpu"):
        pytest.skip(f"{kernel} is not exact here")
    monkeypatch.setattr(kernels, "choose", lambda *_: kernel)
    model, call = quantized(toy, torch.float32), toy_call(1)
    ledger, table = count(model, call), layer_table(model, call)
    assert ledger.int8_flops == sum(row.flops for row in table if row.quantized)
    assert ledger.linear_flops == sum(row.flops for row in table)


def test_it_counts_what_was_executed_not_what_was_meant(toy: ToyDiT) -> None:
    """A block that is skipped, as a cache does, drops out of both."""
    model, call = quantized(toy, torch.float32), toy_call(1)
    every = count(model, call)
    model.blocks[1].forward = lambda x, shift: x
    fewer = count(model, call)
    assert fewer.int8_matmuls == every.int8_matmuls - 5
    assert fewer.linear_flops == sum(row.flops for row in layer_table(model, call))
