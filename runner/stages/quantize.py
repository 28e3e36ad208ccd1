"""quantize: write the integer weights in the format that the field's runtimes load, and say what it cost each layer.

The error is measured on recorded calls, from the files just written: what is reported is what was exported. Of a scheme
that needs no recording, the error of the weights alone.
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
from runner.quant import calibration, export, rules, swap
from runner.quant.layers import select
from runner.quant.linear import QuantizedLinear
from runner.quant.quality import snr_by_layer, snr_of_weights
from runner.recording.recording import Recording

# Calls of each calibration prompt that the signal-to-noise ratios are measured on, spread evenly over its steps.
CALLS = 4


def run(context: Context, draft: Path) -> None:
    config, quant = context.config, context.config["quant"]
    layers, calibrated, kept_float = _chosen(context)
    transformer = on_device(context.pipeline().transformer)
    # What is exported is made of the weights as they are, whatever is computed in.
    as_computed = config["hardware"]["compute"] == config["model"]["dtype"]
    stored = transformer if as_computed else load_transformer(config["model"], "cpu")
    export.save(draft, *swap.quantize(stored, quant["scheme"], layers, calibrated, quant))
    del stored

    fresh = swap.apply(skeleton(config["model"]), *export.load(draft)).to(transformer.device)
    quantized = {name: cast(QuantizedLinear, fresh.get_submodule(name)) for name in layers}
    if rules.calibrates(quant):
        calls = _recorded_calls(context)
        with context.progress(len(calls)) as ticker, torch.inference_mode():
            quality = snr_by_layer(transformer, quantized, _ticking(calls, ticker))
    else:
        quality = snr_of_weights(transformer, quantized)
    kept = [{"layer": name, "quantized": False, "why": why} for name, why in kept_float.items()]
    rows = [_plain(asdict(layer)) | {"quantized": True} for layer in quality] + kept
    (draft / "layers.json").write_text(json.dumps(rows, indent=2))


def _chosen(context: Context) -> tuple[dict[str, str], dict[str, Any], dict[str, str]]:
    """The scheme of each layer that is quantized, what it was calibrated by, and why each other one is not."""
    quant = context.config["quant"]
    need = rules.known(quant["scheme"]).need
    if need == "nothing":
        selection = select(skeleton(context.config["model"]), quant["include"], quant["exclude"])
        return dict.fromkeys(selection.quantized, quant["scheme"]), {}, selection.kept_float
    found = json.loads((context.artifacts["calibrate"] / "ranges.json").read_text())
    calibrated = {name: calibration.from_json(need, made) for name, made in found["layers"].items()}
    return dict.fromkeys(calibrated, quant["scheme"]), calibrated, found["kept_float"]


def _recorded_calls(context: Context) -> list[dict[str, Any]]:
    """Some of the calls that were recorded for calibration, spread evenly over the steps."""
    recording = Recording(context.artifacts["dump"])
    parts = recording.parts("calibration")
    total = sum(len(list((part / "calls").iterdir())) for part in parts)
    stride = max(1, total // len(parts) // CALLS)
    return [call for part in parts for call in itertools.islice(recording.calls(part), 0, None, stride)]


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no infinity: a layer without noise has null decibels. What was not measured is left out."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
        if value is not None
    }


def _ticking(calls: Iterable[dict[str, Any]], ticker: Ticker) -> Iterator[dict[str, Any]]:
    for call in calls:
        yield call
        ticker.advance()
