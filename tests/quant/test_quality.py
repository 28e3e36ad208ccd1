from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from quant.toy_dit import KEEP_FLOAT, ToyDiT, input_ranges, quantize, toy_call
from torch import nn

from runner.quant import export
from runner.quant.layers import select
from runner.quant.observers import Range
from runner.quant.quality import snr_by_layer, weight_snr
from runner.quant.swap import apply
from runner.quant.w8a8 import W8A8Linear

CALLS = [toy_call(seed) for seed in range(3)]


def quantized_layers(toy: ToyDiT, ranges: dict[str, Range], folder: Path) -> dict[str, W8A8Linear]:
    export.save(folder, *quantize(toy, ranges, select(toy, ["*"], KEEP_FLOAT).quantized))
    fresh = apply(ToyDiT(), *export.load(folder))
    return {name: module for name, module in fresh.named_modules() if isinstance(module, W8A8Linear)}


def decibel(signal: torch.Tensor, noise: torch.Tensor) -> float:
    return 10 * math.log10(float(signal.double().square().sum() / noise.double().square().sum()))


def test_figures_against_stored_activations(toy: ToyDiT, tmp_path: Path) -> None:
    layers = quantized_layers(toy, input_ranges(toy, CALLS), tmp_path)
    found = snr_by_layer(toy, layers, iter(CALLS))
    assert {q.layer for q in found} == set(layers)
    assert [q.snr_db for q in found] == sorted(q.snr_db for q in found)
    by_name = {q.layer: q for q in found}

    name = "blocks.1.attn.to_k"
    linear, kept = toy.get_submodule(name), []
    hook = linear.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    for call in CALLS:
        toy(**call)
    hook.remove()
    x = torch.cat([t.flatten(0, 1) for t in kept])
    with torch.no_grad():
        assert by_name[name].snr_db == pytest.approx(decibel(linear(x), layers[name](x) - linear(x)), abs=0.01)
        assert by_name[name].snr_db == pytest.approx(40, abs=10)  # eight bits on bell-shaped inputs
        by_call = [decibel(linear(t), layers[name](t) - linear(t)) for t in kept]
        assert by_name[name].worst_call_snr_db == pytest.approx(min(by_call), abs=0.01)
        noise = layers[name].dequantized_weight() - linear.weight
        assert by_name[name].weight_snr_db == pytest.approx(decibel(linear.weight, noise), abs=0.01)
    assert (by_name[name].shape, by_name[name].calls, by_name[name].rows) == ((32, 32), 3, 3 * 48)


def test_a_layer_with_a_bad_range_comes_first(toy: ToyDiT, tmp_path: Path) -> None:
    ranges = input_ranges(toy, CALLS) | {"blocks.0.ff.net.0": Range(-100, 100), "blocks.1.attn.to_v": Range(-0.1, 0.1)}
    found = snr_by_layer(toy, quantized_layers(toy, ranges, tmp_path), CALLS)
    assert {q.layer for q in found[:2]} == {"blocks.0.ff.net.0", "blocks.1.attn.to_v"}
    assert found[1].snr_db < found[2].snr_db - 10


def test_the_float_model_is_as_before(toy: ToyDiT, tmp_path: Path) -> None:
    layers = quantized_layers(toy, input_ranges(toy, CALLS), tmp_path)
    before = toy(**CALLS[0])
    snr_by_layer(toy, layers, CALLS)
    assert torch.equal(toy(**CALLS[0]), before)
    assert not any(m._forward_hooks for m in toy.modules())
    with pytest.raises(ValueError, match="no recorded call reaches pos_embed"):
        snr_by_layer(toy, layers, [])


def test_weight_snr_limits() -> None:
    weight = nn.Linear(4, 4).weight
    assert weight_snr(weight, weight.detach().clone()) == math.inf
    assert weight_snr(torch.zeros(2), torch.ones(2)) == -math.inf
    assert weight_snr(torch.full((4,), 10.0), torch.full((4,), 9.0)) == pytest.approx(20)
