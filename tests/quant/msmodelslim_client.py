"""Quantizes the toy transformer with msModelSlim; a process of its own, in an environment of its own.

python msmodelslim_client.py FOLDER DTYPE: reads model.safetensors and calls.safetensors in FOLDER, writes FOLDER/out.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from msmodelslim.quant.session.session import (
    SaveProcessorConfig,
    SessionConfig,
    W8A8ProcessorConfig,
    W8A8QuantConfig,
    quant_model,
)
from safetensors.torch import load_file
from torch import nn
from toy_dit import ToyDiT


class Model(ToyDiT):
    """What msModelSlim reads off a model."""

    @property
    def device(self) -> torch.device:
        return self.proj_out.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.proj_out.weight.dtype


def main(folder: Path, dtype: torch.dtype) -> None:
    os.chdir(folder)  # it leaves a features.npy where it runs
    tensors = load_file("model.safetensors")
    model = Model(width=tensors["pos_embed.weight"].shape[0]).to(dtype).eval()
    model.load_state_dict(tensors)
    model.config = SimpleNamespace(torch_dtype=dtype)
    calls = load_file("calls.safetensors")
    calib = [[x, t] for x, t in zip(calls["hidden_states"], calls["timestep"], strict=True)]
    # It has no patterns here, and keeps the last linear (proj_out) in float by itself.
    disabled = [
        name for name, m in model.named_modules() if isinstance(m, nn.Linear) and ("net.2" in name or "adaln" in name)
    ]
    session = {
        "w8a8": W8A8ProcessorConfig(cfg=W8A8QuantConfig(act_method="minmax"), disable_names=disabled),
        "save": SaveProcessorConfig(output_path=str(folder / "out")),
    }
    quant_model(model, SessionConfig(processor_cfg_map=session, calib_data=calib, device="cpu"))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), getattr(torch, sys.argv[2]))
