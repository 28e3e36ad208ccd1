"""What rehearsals at released sizes share: random bf16 weights in a released layout, and a run with its peak memory."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


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


def rehearse(output: Path, *arguments: str) -> tuple[Path, int]:
    """One run by the front door, its words and its cost printed: the run folder, and the most bytes that any process
    started by this test session has held."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "runner", *arguments, f"output={output}"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    print(done.stdout, done.stderr)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(f"peak memory of the worker {peak / 2**30:.2f} GiB, {time.perf_counter() - start:.0f} s")
    assert done.returncode == 0
    (run,) = next(iter(path for path in output.iterdir() if not path.name.startswith("."))).iterdir()
    return run, peak
