"""calibrate: turn the recorded statistics into what the scheme needs of each layer that is to be quantized."""

from __future__ import annotations

import json
from pathlib import Path

from runner.bench.context import Context
from runner.model import skeleton
from runner.quant import calibration, rules
from runner.quant.layers import select
from runner.recording.recording import Recording

UNUSED = "no recorded call runs it"  # why a linear without statistics stays in float


def run(context: Context, draft: Path) -> None:
    quant = context.config["quant"]
    scheme = rules.known(quant["scheme"])
    selection = select(skeleton(context.config["model"]), quant["include"], quant["exclude"])
    statistics = Recording(context.artifacts["dump"]).statistics()
    kept_float = selection.kept_float | {name: UNUSED for name in selection.quantized if name not in statistics}
    reached = [name for name in selection.quantized if name in statistics]
    with context.progress(len(reached)) as ticker:
        layers = {}
        for name in reached:
            layers[name] = calibration.to_json(calibration.calibrate(scheme, statistics[name], quant))
            ticker.advance()
    ranges = {"observer": quant["observer"], "layers": layers, "kept_float": kept_float}
    (draft / "ranges.json").write_text(json.dumps(ranges, indent=2))
