"""Our export served by MindIE-SD 3.1.0 on a CPU, over a stand-in for torch_npu made of the vendor's schemas and checks.

In an environment of its own: pip install torch==2.13.0 numpy safetensors einops pyyaml; pip install --no-deps
mindiesd==3.1.0; elsewhere pip download --no-deps torch-npu==2.13.0 (a wheel, not installed); then
MINDIESD_PYTHON=that/bin/python TORCH_NPU_WHEEL=FILE.whl pytest -s -m '' tests/quant/test_mindiesd.py

A pass shows that file names, modes, keys, dtypes and shapes load, and that the documented operators then compute the
intended function. It does not show an NPU's own rounding.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from quant.outside import python_with, run_client
from quant.toy_dit import KEEP_FLOAT, ToyDiT, input_ranges, quantize, toy_call
from safetensors.torch import load_file, save_file

from runner.quant import export
from runner.quant.layers import select
from runner.quant.swap import apply

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mindiesd_computes_what_we_do(tmp_path: Path, dtype: torch.dtype) -> None:
    python = python_with("mindiesd", "MINDIESD_PYTHON")
    wheel = os.environ.get("TORCH_NPU_WHEEL") or pytest.skip("TORCH_NPU_WHEEL names no torch_npu wheel")
    torch.manual_seed(0)
    model = ToyDiT(width=96).to(dtype).eval()
    calls = [toy_call(seed, dtype) for seed in range(4)]
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    save_file({k: torch.stack([c[k] for c in calls]) for k in calls[0]}, tmp_path / "calls.safetensors")
    layers = select(model, ["*"], KEEP_FLOAT).quantized
    export.save(tmp_path / "out", *quantize(model, input_ranges(model, calls), layers))

    name = str(dtype).removeprefix("torch.")
    said = run_client(python, "mindiesd_client.py", tmp_path, name, Path(wheel).resolve(), MINDIE_LOG_TO_FILE="0")
    report = json.loads(said.strip().splitlines()[-1])
    assert report["swapped"] == list(layers)
    assert report["ran"] == ["npu_quantize", "npu_quant_matmul"] * len(layers) * len(calls)

    theirs = load_file(tmp_path / "outputs.safetensors")["outputs"].float()
    ours_model = apply(ToyDiT(width=96), *export.load(tmp_path / "out"))
    with torch.no_grad():
        ours = torch.stack([ours_model(**call) for call in calls]).float()
        plain = torch.stack([model(**call) for call in calls]).float()
    between, cost, our_cost = (
        float((x - y).norm() / y.norm()) for x, y in ((theirs, ours), (theirs, plain), (ours, plain))
    )
    print(
        f"\n{dtype}: MindIE-SD off our W8A8 by {between:.1e}, off float by {cost:.4f}; ours off float by {our_cost:.4f}"
    )
    # The same integers; sums are rounded to the model's dtype once, from float32 values that differ by an ulp.
    assert between < (2e-3 if dtype == torch.bfloat16 else 5e-4)
    assert cost < 0.03
