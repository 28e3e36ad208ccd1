"""That a scheme is one module and one entry: a toy in tests alone quantizes, mixes, exports, loads and computes."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from quant import w8a16_toy
from quant.toy_dit import KEEP_FLOAT, ToyDiT, input_ranges, toy_call
from torch import nn

from runner.config.schema import AVAILABLE
from runner.quant import calibration, export, rules, scheme, swap, tagged
from runner.quant.layers import select
from runner.quant.ledger import count, layer_table
from runner.quant.observers import Range, observe
from runner.quant.quality import snr_by_layer, snr_of_weights
from runner.quant.w8a8 import W8A8Linear
from runner.recording.statistics import LayerStatistics
from runner.recording.statistics import histogram as bin_counts

TOY = rules.Scheme("quant.w8a16_toy", tag="W8A16-TOY", need="nothing")


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rules.SCHEMES, "w8a16_toy", TOY)


def mixed(model: ToyDiT) -> dict[str, str]:
    """Attention in W8A8, what is before and behind it in the toy scheme."""
    layers = select(model, ["*"], KEEP_FLOAT).quantized
    return {name: "w8a8" if ".attn." in name else "w8a16_toy" for name in layers}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_two_schemes_in_one_model_from_quantize_to_a_forward(toy: ToyDiT, tmp_path: Path, dtype: torch.dtype) -> None:
    model = toy.to(dtype)
    layers, calls = mixed(model), [toy_call(seed, dtype) for seed in range(3)]
    ranges = {name: range_ for name, range_ in input_ranges(model, calls).items() if layers.get(name) == "w8a8"}
    export.save(tmp_path, *swap.quantize(model, "w8a8", layers, ranges))
    description = json.loads((tmp_path / "quant_model_description_w8a8.json").read_text())
    assert {value for key, value in description.items() if key.endswith("weight_scale")} == {"W8A8", "W8A16-TOY"}
    assert description["blocks.0.ff.net.0.weight"] == "W8A16-TOY" and description["blocks.0.ff.net.0.bias"] == "FLOAT"

    with torch.device("meta"):
        fresh = ToyDiT()
    loaded = swap.apply(fresh, *export.load(tmp_path))
    kinds = {name: type(loaded.get_submodule(name)) for name in layers}
    assert kinds == {name: W8A8Linear if of == "w8a8" else w8a16_toy.Linear for name, of in layers.items()}
    y, wanted = loaded(**calls[1]).float(), model(**calls[1]).float()
    assert 0 < (y - wanted).norm() / wanted.norm() < 0.05

    # Each layer is what its scheme alone makes of it.
    alone = swap.apply(ToyDiT(), *swap.quantize(model, "w8a16_toy", dict.fromkeys(layers, "w8a16_toy"), {}))
    x = torch.randn(4, 32).to(dtype)
    assert torch.equal(loaded.blocks[0].ff.net[0](x), alone.blocks[0].ff.net[0](x))
    quantized = {name: loaded.get_submodule(name) for name in layers}
    assert {q.layer for q in snr_by_layer(model, quantized, calls)} == set(layers)
    assert all(q.snr_db is None and 30 < q.weight_snr_db < 60 for q in snr_of_weights(model, quantized))

    ledger, table = count(loaded, calls[0]), layer_table(loaded, calls[0])
    assert ledger.int8_matmuls == sum(of == "w8a8" for of in layers.values())
    assert ledger.int8_flops == sum(row.flops for row in table if layers.get(row.layer) == "w8a8")
    assert ledger.linear_flops == sum(row.flops for row in table)


def test_files_are_called_after_the_model_s_scheme(toy: ToyDiT, tmp_path: Path) -> None:
    export.save(tmp_path, *swap.quantize(toy, "w8a16_toy", {"pos_embed": "w8a16_toy"}, {}))
    assert {f.name for f in tmp_path.iterdir()} == {
        "quant_model_description_w8a16-toy.json",
        "quant_model_weight_w8a16-toy.safetensors",
    }
    assert isinstance(swap.apply(ToyDiT(), *export.load(tmp_path)).pos_embed, w8a16_toy.Linear)


def test_its_bits_travel_like_those_of_any_scheme() -> None:
    parts = w8a16_toy.quantize_linear("layer", nn.Linear(48, 40).bfloat16(), None)
    layer, x = w8a16_toy.Linear(**parts), torch.randn(3, 48)
    before = layer(x)
    for moved in (copy.deepcopy(layer), layer.half(), layer.to(torch.float64)):
        assert torch.equal(moved(x), before) and moved.weight_scale.dtype == torch.bfloat16


def test_what_is_refused_is_named(toy: ToyDiT, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = {"pos_embed": "w8a16_toy", "proj_out": "w8a8"}
    with pytest.raises(ValueError, match="no recorded range for proj_out"):
        swap.quantize(toy, "w8a8", layers, {})
    tensors, description = swap.quantize(toy, "w8a8", layers, {"proj_out": Range(-1, 1)})
    both = {**description, "pos_embed.weight_scale": "W8A8"}
    with pytest.raises(ValueError, match="pos_embed.weight_scale: tagged W8A8, beside W8A16-TOY of the same layer"):
        export.take_apart(tensors, both)
    with pytest.raises(ValueError, match=r"pos_embed.weight_scale: float32 \[1, 32\], must be .*float32 \[32, 1\]"):
        export.take_apart(tensors | {"pos_embed.weight_scale": tensors["pos_embed.weight_scale"].T}, description)
    monkeypatch.delitem(rules.SCHEMES, "w8a16_toy")
    with pytest.raises(ValueError, match="pos_embed.weight: unknown type 'W8A16-TOY'"):
        swap.apply(ToyDiT(), tensors, description)


def test_the_table_of_schemes() -> None:
    assert tagged("W8A16-TOY") is scheme("w8a16_toy") is w8a16_toy
    assert {"none", *rules.SCHEMES} - {"w8a16_toy"} == set(AVAILABLE["quant.scheme"])  # what the front door lets in
    tags = [known.tag for known in rules.SCHEMES.values()]
    assert len(set(tags)) == len(tags) and "FLOAT" not in tags
    for name in rules.SCHEMES:
        assert {"weight", "bias"} <= set(scheme(name).PARTS)
        assert rules.SCHEMES[name].need in (*calibration.NEEDS, "nothing")


def recorded() -> LayerStatistics:
    x = (
        torch.randn(2, 3, 512, 8, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1.0, 2.0, 4.0])[:, None, None]
    )
    flat = x.flatten(2)
    counts = torch.stack([bin_counts(batch) for batch in flat])
    return LayerStatistics(flat.amin(2), flat.amax(2), x.abs().amax(2), counts)


@pytest.mark.parametrize("need", calibration.NEEDS)
def test_calibration_gives_a_scheme_what_it_asks_for_through_json(need: rules.Need) -> None:
    statistics, quant = recorded(), {"observer": "minmax", "percentile": 99.99}
    made = calibration.calibrate(rules.Scheme("any", "ANY", need), statistics, quant)
    read = calibration.from_json(need, json.loads(json.dumps(calibration.to_json(made))))
    if need == "absmax_by_channel":
        assert torch.equal(read, made) and torch.equal(made, statistics.absmax.amax((0, 1)))
    else:
        assert read == made
    if need == "range_by_step":
        assert [r.maximum for r in made] == statistics.maximum.amax(0).tolist()
    if need == "range":
        assert made == observe("minmax", statistics)


@pytest.mark.parametrize("observer", ["minmax", "mean_minmax", "percentile", "histogram", "mse"])
def test_observers_serve_other_grids(observer: str) -> None:
    statistics = recorded()
    usual = observe(observer, statistics)
    assert observe(observer, statistics, levels=256, symmetric=False) == usual
    symmetric = observe(observer, statistics, levels=256, symmetric=True)
    assert symmetric.minimum == -symmetric.maximum < 0
    few = observe(observer, statistics, levels=16)
    assert few.minimum < 0 < few.maximum
    if observer in ("histogram", "mse"):  # a coarse grid clips more
        assert few.maximum - few.minimum < usual.maximum - usual.minimum
    else:
        assert few == usual
