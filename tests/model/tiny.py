"""Tiny transformers of the models written here, each with a call that it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from runner.model.opensora12 import OpenSora12Transformer
from runner.model.osp12 import OSP12Transformer

DATA = Path(__file__).parents[1] / "data"


def osp12() -> tuple[OSP12Transformer, dict[str, Any]]:
    cases = load_file(DATA / "osp12/dit_a/cases.safetensors")
    call = {key.removeprefix("vid."): value for key, value in cases.items() if key.startswith("vid.")}
    given = {key: value for key, value in call.items() if not key.startswith("output")}
    return OSP12Transformer.from_pretrained(DATA / "osp12/dit_a/model_ema"), given


def opensora12() -> tuple[OpenSora12Transformer, dict[str, Any]]:
    start, cases = "t2v_mask.in.", load_file(DATA / "opensora12/stdit3_cases.safetensors")
    call = {key.removeprefix(start): value for key, value in cases.items() if key.startswith(start)}
    return OpenSora12Transformer.from_pretrained(DATA / "opensora12/stdit3"), call
