"""The transformer of Open-Sora-Plan v1.2 with the test vectors' weights, and the calls that the vectors hold."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from runner.model.osp12 import OSP12Transformer

DATA = Path(__file__).parents[1] / "data/osp12"
CASES = [(name, case) for name in ("dit_a", "dit_b") for case in json.loads((DATA / name / "stats.json").read_text())]


def load(name="dit_a", dtype=torch.float32):
    return OSP12Transformer.from_pretrained(DATA / name / "model_ema", torch_dtype=dtype)


def vectors(name="dit_a", case="vid"):
    """Arguments of a call, and what it gives when each axis has its own interpolation scale."""
    tensors = load_file(DATA / name / "cases.safetensors")
    call = {key.removeprefix(f"{case}."): value for key, value in tensors.items() if key.startswith(f"{case}.")}
    output = call.pop("output")
    return call, call.pop("output_no_cache_alias", output)


@torch.inference_mode()
def run(model, **call):
    return model(**call).sample
