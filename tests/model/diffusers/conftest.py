"""Tiny random pipelines of seven families, each run once through every stage: W8A8 and a searched cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from model.diffusers.in_process import run
from model.diffusers.tiny import PIPELINES, save, spelled

from runner.bench.context import Bench

STEPS = 4
DTYPES = {"wan": "bf16", "sd3": "bf16"}  # the one has modules that stay in float32; the other a saved buffer
CACHES = {"flux": "adaptive", "wan": "adaptive"}


@dataclass
class Ran:
    name: str
    folder: Path
    config: dict[str, Any]
    bench: Bench
    arguments: tuple[str, ...]  # the model's part of the command line


@pytest.fixture(scope="session", params=PIPELINES)
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    name, root = request.param, tmp_path_factory.mktemp("diffusers")
    options = {"dtype": DTYPES.get(name, "fp32"), "checkpoint": str(save(name, root)), **PIPELINES[name][1]}
    model = (
        f"model={'sd3' if name == 'sd3' else 'diffusers'}",
        *(f"model.{key}={spelled(value)}" for key, value in options.items()),
        "prompts.text=[a red boat]",
    )
    bench = Bench()
    folder, config = run(
        root, *model, "quant=w8a8", f"cache={CACHES.get(name, 'dit_cache')}", "cache.ratio=1.05",
        f"sampler.num_sampling_steps={STEPS}",
        "timing.repeats=0", bench=bench,
    )  # fmt: skip
    return Ran(name, folder, config, bench, model)
