"""What rehearsals at released sizes share: random bf16 weights in a released layout, and a run to int8 in a limit."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from runner.quant import export

# One layer of the released text encoder (mT5, T5) in its width.
ENCODER = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_heads": 64, "num_layers": 1}


def random_state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights of standard deviation 0.02, norms at one, biases at zero, in bf16."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in ((name, tensor.shape) for name, tensor in module.state_dict().items()):
        tensor = torch.zeros(shape, dtype=torch.bfloat16)
        if "norm" in name and name.endswith("weight") and len(shape) == 1:
            tensor.fill_(1)
        elif not name.endswith("bias"):
            tensor.normal_(0, 0.02, generator=generator)
        state[name] = tensor
    return state


def write(
    folder: Path, module: torch.nn.Module, class_name: str, other: Mapping[str, torch.Tensor] | None = None
) -> None:
    """A model's folder as diffusers saves it. `other` are tensors that are not to be random."""
    folder.mkdir(parents=True)
    config: dict[str, Any] = {key: value for key, value in module.config.items() if not key.startswith("_")}
    (folder / "config.json").write_text(json.dumps({"_class_name": class_name, **config}))
    save_file(random_state(module) | dict(other or {}), folder / "diffusion_pytorch_model.safetensors")


@dataclass(frozen=True)
class Export:
    """What quantize has exported: tensors, what each of them is, and the names of the int8 weights."""

    tensors: Mapping[str, torch.Tensor]
    description: Mapping[str, str]
    quantized: Sequence[str]


def rehearse(output: Path, limit: int, *arguments: str) -> Export:
    """One run by the front door in two steps, its words and its cost printed. No process that this test session has
    started may have held more than `limit` bytes, and every int8 weight is one that int8 multiplies."""
    start = time.perf_counter()
    common = ("sampler.num_sampling_steps=2", "timing.warmup=0", "timing.repeats=1", f"output={output}")
    command = [sys.executable, "-m", "runner", *arguments, *common]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    print(done.stdout, done.stderr)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(f"peak memory of the worker {peak / 2**30:.2f} GiB, {time.perf_counter() - start:.0f} s")
    assert done.returncode == 0
    assert peak < limit
    (run,) = next(iter(path for path in output.iterdir() if not path.name.startswith("."))).iterdir()
    tensors, description = export.load(run / "quantize")
    quantized = [key for key, tag in description.items() if tag == "W8A8" and key.endswith(".weight")]
    ledger = json.loads((run / "sample" / "metrics.json").read_text())["ledger"]
    assert ledger["int8_matmuls"] == len(quantized)
    return Export(tensors, description, quantized)
