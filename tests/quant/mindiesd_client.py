"""Serves an export with MindIE-SD's own quantize(), on a CPU; a process of its own, in an environment of its own.

python mindiesd_client.py FOLDER DTYPE WHEEL: FOLDER holds the float model.safetensors, the export under out/ and
calls.safetensors; writes outputs.safetensors and, as JSON on its last line, which layers were swapped and what ran.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import npu_standin
import torch
from safetensors.torch import load_file, save_file
from toy_dit import ToyDiT


def main(folder: Path, dtype: torch.dtype, wheel: Path) -> None:
    npu_standin.install(wheel)
    from mindiesd import quantize

    tensors = load_file(folder / "model.safetensors")
    model = ToyDiT(width=tensors["pos_embed.weight"].shape[0]).to(dtype).eval()
    model.load_state_dict(tensors)
    model = quantize(model, str(folder / "out" / "quant_model_description_w8a8.json"), dtype=dtype)
    calls = load_file(folder / "calls.safetensors")
    with torch.no_grad():
        outputs = [model(x, t) for x, t in zip(calls["hidden_states"], calls["timestep"], strict=True)]
    save_file({"outputs": torch.stack(outputs)}, folder / "outputs.safetensors")
    swapped = [name for name, m in model.named_modules() if type(m).__name__ == "W8A8QuantLinear"]
    print("\n" + json.dumps({"swapped": swapped, "ran": npu_standin.calls}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), getattr(torch, sys.argv[2]), Path(sys.argv[3]))
