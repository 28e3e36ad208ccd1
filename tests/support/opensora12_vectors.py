"""The transformer of Open-Sora 1.2 with the test vectors' weights, and the calls that the vectors hold."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from runner.model.opensora12 import OpenSora12Transformer

DATA = Path(__file__).parents[1] / "data/opensora12"
VECTORS = load_file(DATA / "stdit3_cases.safetensors")
CASES = list(dict.fromkeys(key.split(".")[0] for key in VECTORS))


def load(dtype=torch.float32, folder=DATA / "stdit3"):
    return OpenSora12Transformer.from_pretrained(folder, torch_dtype=dtype)


def vectors(case):
    """Arguments of a call, and what it gives."""
    start = f"{case}.in."
    call = {key.removeprefix(start): value for key, value in VECTORS.items() if key.startswith(start)}
    return call, VECTORS[f"{case}.out"]


@torch.inference_mode()
def run(model, **call):
    return model(**call).sample
