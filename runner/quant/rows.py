"""What pages say of quantized linears: FLOPs, sizes, what it cost each layer. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.config import wording
from runner.page.pieces import Figure, Row, Section, Value
from runner.page.run import Run
from runner.page.values import items, number, pick
from runner.technique import questions

STAGE = "quantize"
EXPORTS = ("quant_model_weight_*.safetensors*", "quant_model_description_*.json")
FLOAT_WEIGHTS = "diffusion_pytorch_model*.safetensors"
WORST_LAYERS = 12


@dataclass(frozen=True)
class Layer:
    """What quantization did to one linear layer, in decibels of its outputs (all calls, the worst call) and weights.

    Infinite where there is no noise, None where none was measured. `why` is the pattern that kept it in float.
    """

    name: str
    snr_db: float | None
    worst_call_snr_db: float | None
    weight_snr_db: float | None
    shape: str
    quantized: bool
    why: str


class Rows(questions.Rows):
    """Quantized linears: int8 FLOPs, smaller weights, noise by layer."""

    changes_call = True
    figures = (
        Figure("weights", "weights, float = 1", lambda run: size_ratio(run), wording.times, False, cost=4),
        Figure("int8_share", "linear FLOPs in int8", lambda run: number(_ledger(run), "int8_share"), wording.share),
    )

    def name(self, config: Mapping[str, Any]) -> str | None:
        """The scheme."""
        scheme = pick(config, "quant", "scheme")
        return None if scheme in (None, "none") else str(scheme).upper()

    def highlights(self, run: Run) -> Iterator[tuple[str, Value]]:
        """The share of FLOPs in int8, and the size of the weights."""
        if (int8 := number(_ledger(run), "int8_share")) is not None:
            yield "of linear FLOPs in int8", Value(wording.share(int8))
        if (ratio := size_ratio(run)) is not None:
            yield "size of the weights, float = 1", Value(wording.times(ratio))

    def predicted(self, run: Run) -> Iterator[Row]:
        """FLOPs of linears, and weights on disk."""
        ledger = _ledger(run)
        if (int8 := number(ledger, "int8_flops")) is not None:
            matmuls = number(ledger, "int8_matmuls")
            note = f"{wording.count(matmuls)} int8 matrix products" if matmuls is not None else ""
            total = Value(wording.flops(number(ledger, "linear_flops")), "none in int8")
            done = Value(f"{wording.flops(int8)} in int8", note)
            share = Value(wording.share(number(ledger, "int8_share")))
            yield Row("FLOPs of linear layers", "one call of the transformer", total, done, share)
        if (ratio := size_ratio(run)) is not None:
            before, after = (Value(wording.size(size)) for size in (float_bytes(run), export_bytes(run)))
            yield Row("Transformer weights", "on disk", before, after, Value(wording.times(ratio)))

    def sections(self, run: Run) -> Iterator[Section]:
        """What quantize did to each layer."""
        if found := layers(run):
            kept = [layer for layer in found if not layer.quantized]
            yield Section("quant/layers.html.jinja", {"worst": worst(found), "kept": kept, "layers": found})


def layers(run: Run) -> list[Layer]:
    """Every linear of the model, as quantize has listed it."""
    return [
        Layer(
            name=str(row.get("layer") or "?"),
            snr_db=_decibel(row, "snr_db"),
            worst_call_snr_db=_decibel(row, "worst_call_snr_db"),
            weight_snr_db=_decibel(row, "weight_snr_db"),
            shape=" × ".join(map(str, items(row.get("shape")))),
            quantized=bool(row.get("quantized", True)),
            why=str(row.get("why") or ""),
        )
        for row in run.rows_of_stage(STAGE, "layers.json")
    ]


def worst(layers: Sequence[Layer]) -> list[tuple[Layer, float]]:
    """The quantized layers of lowest signal-to-noise ratio, each with its bar in percent of the best layer's."""
    noisy = [(layer, layer.snr_db) for layer in layers if layer.snr_db is not None and math.isfinite(layer.snr_db)]
    noisy.sort(key=lambda pair: pair[1])
    longest = max([1.0, *(snr for _, snr in noisy)])
    return [(layer, max(0.0, 100 * snr / longest)) for layer, snr in noisy[:WORST_LAYERS]]


def size_ratio(run: Run) -> float | None:
    """Bytes of the export over those of the float transformer."""
    before, after = float_bytes(run), export_bytes(run)
    return after / before if before and after else None


def export_bytes(run: Run) -> int | None:
    """Size of the exported weights and their description."""
    files = [file for pattern in EXPORTS for file in (run.folder / STAGE).glob(pattern)]
    return sum(file.stat().st_size for file in files) or None


def float_bytes(run: Run) -> int | None:
    """Size of the float transformer's weights: as recorded, or as found where the checkpoint still lies."""
    recorded = number(_ledger(run), "weight_bytes", "float")
    if recorded is not None:
        return int(recorded)
    path = Path(str(run.checkpoint.get("path")))  # a hub id is not absolute: nothing here knows where its files are
    try:
        files = [file for place in (path, path / "transformer") for file in place.glob(FLOAT_WEIGHTS)]
        return sum(file.stat().st_size for file in files) or None if path.is_absolute() else None
    except OSError:
        return None


def _ledger(run: Run) -> Any:
    return run.metrics.get("ledger")


def _decibel(row: Mapping[str, Any], key: str) -> float | None:
    """JSON null stands for infinity here."""
    return math.inf if key in row and row[key] is None and row.get("quantized", True) else number(row, key)
