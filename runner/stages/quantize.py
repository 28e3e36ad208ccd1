"""quantize: write the integer weights in the format that the field's runtimes load, and say what it cost each layer.

The error is measured on recorded calls, from the files just written: what is reported is what was exported.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch

from runner.bench.context import Context
from runner.bench.progress import Ticker
from runner.generation.offload import on_device
from runner.model import load_transformer, skeleton
from runner.quant import export, scheme
from runner.quant.linear import W8A8Linear
from runner.quant.observers import Range
from runner.quant.quality import snr_by_layer
from runner.recording.recording import Recording

# Calls of each calibration prompt that the signal-to-noise ratios are measured on, spread evenly over its steps.
CALLS = 4


def run(context: Context, draft: Path) -> None:
    config = context.config
    calibrated = json.loads((context.artifacts["calibrate"] / "ranges.json").read_text())
    ranges = {name: Range(**ends) for name, ends in calibrated["layers"].items()}
    method = scheme(config["quant"]["scheme"])
    transformer = on_device(context.pipeline().transformer)
    # What is exported is made of the weights as they are, whatever is computed in.
    as_computed = config["hardware"]["compute"] == config["model"]["dtype"]
    stored = transformer if as_computed else load_transformer(config["model"], "cpu")
    export.save(draft, *method.quantize(stored, ranges, list(ranges)))
    del stored

    fresh = method.apply(skeleton(config["model"]), *export.load(draft)).to(transformer.device)
    quantized = {name: cast(W8A8Linear, fresh.get_submodule(name)) for name in ranges}
    recording = Recording(context.artifacts["dump"])
    parts = recording.parts("calibration")
    total = sum(len(list((part / "calls").iterdir())) for part in parts)
    stride = max(1, total // len(parts) // CALLS)
    calls = [call for part in parts for call in itertools.islice(recording.calls(part), 0, None, stride)]
    with context.progress(len(calls)) as ticker, torch.inference_mode():
        quality = snr_by_layer(transformer, quantized, _ticking(calls, ticker))
    kept = [{"layer": name, "quantized": False, "why": why} for name, why in calibrated["kept_float"].items()]
    layers = [_plain(asdict(layer)) | {"quantized": True} for layer in quality] + kept
    (draft / "layers.json").write_text(json.dumps(layers, indent=2))


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no infinity: a layer without noise has null decibels."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()
    }


def _ticking(calls: Iterable[dict[str, Any]], ticker: Ticker) -> Iterator[dict[str, Any]]:
    for call in calls:
        yield call
        ticker.advance()
