"""quantize of a scheme that needs nothing recorded: no dump, no calibrate, and what is known of its layers."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runner.bench import context as room
from runner.model import load_transformer
from runner.quant import export, rules
from runner.quant.linear import QuantizedLinear
from runner.stages import quantize


def test_it_quantizes_without_a_recording(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = rules.Scheme("quant.w8a16_toy", tag="W8A16-TOY", need="nothing")
    monkeypatch.setitem(rules.SCHEMES, "w8a16_toy", toy)
    config: dict[str, Any] = {
        "model": {"name": "osp12", "checkpoint": str(tiny_checkpoint), "dtype": "fp32"},
        "quant": {"scheme": "w8a16_toy", "include": ["*"], "exclude": ["*net.2*"]},
        "hardware": {"device": "cpu", "compute": "fp32", "layerwise_casting": False},
    }
    pipeline = SimpleNamespace(transformer=load_transformer(config["model"], "cpu"))
    context: Any = SimpleNamespace(config=config, artifacts={}, pipeline=lambda: pipeline, progress=nullcontext)
    quantize.run(context, tmp_path)

    rows = json.loads((tmp_path / "layers.json").read_text())
    made = {row["layer"]: row for row in rows if row["quantized"]}
    assert made and all("snr_db" not in row and 30 < row["weight_snr_db"] < 60 for row in made.values())
    assert {row["why"] for row in rows if not row["quantized"]} == {"*net.2*"}
    assert set(export.load(tmp_path)[1].values()) == {"W8A16-TOY", "FLOAT"}
    loaded = room.quantized_transformer(config, tmp_path)
    assert {name for name, m in loaded.named_modules() if isinstance(m, QuantizedLinear)} == set(made)
