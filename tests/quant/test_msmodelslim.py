"""The same model quantized by msModelSlim 26.1.0.

In an environment of its own: pip install torch==2.13.0 numpy safetensors easydict==1.13 einops pydantic wcmatch
accelerate requests scipy pygtrie tqdm pyyaml transformers; pip install --no-deps msmodelslim==26.1.0; then
MSMODELSLIM_PYTHON=that/bin/python pytest -s -m '' tests/quant/test_msmodelslim.py
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from quant.outside import python_with, run_client
from quant.toy_dit import KEEP_FLOAT, ToyDiT, input_ranges, quantize, toy_call
from safetensors.torch import save_file
from torch import Tensor

from runner.quant import export
from runner.quant.layers import select
from runner.quant.observers import observe
from runner.quant.w8a8 import W8A8Linear, quantize_linear
from runner.recording.statistics import BINS, LayerStatistics

pytestmark = pytest.mark.slow


def both(folder: Path, dtype: torch.dtype) -> tuple[ToyDiT, dict[str, dict[str, Tensor]], dict[str, dict[str, Tensor]]]:
    """The model, and the layers of both exports of it."""
    python = python_with("msmodelslim", "MSMODELSLIM_PYTHON")
    torch.manual_seed(0)
    model = ToyDiT(width=96).to(dtype).eval()
    calls = [toy_call(seed, dtype) for seed in range(6)]
    save_file(model.state_dict(), folder / "model.safetensors")
    save_file({k: torch.stack([c[k] for c in calls]) for k in calls[0]}, folder / "calls.safetensors")
    run_client(python, "msmodelslim_client.py", folder, str(dtype).removeprefix("torch."))
    theirs, their_description = export.load(folder / "out")  # their files are read as they are
    ours, description = quantize(model, input_ranges(model, calls), select(model, ["*"], KEEP_FLOAT).quantized)
    assert description == their_description
    for key, tensor in ours.items():
        assert (tensor.dtype, tensor.shape) == (theirs[key].dtype, theirs[key].shape), key
        assert description[key] != "FLOAT" or torch.equal(tensor, theirs[key]), key
    both = export.take_apart(ours, description)[0], export.take_apart(theirs, their_description)[0]
    return model, *({name: dict(layer.parts) for name, layer in layers.items()} for layers in both)


def test_float32_weights_and_scales_are_bit_equal(tmp_path: Path) -> None:
    _, ours, theirs = both(tmp_path, torch.float32)
    assert len(ours) == 11
    for name, parts in ours.items():
        for part in ("weight", "weight_scale", "weight_offset"):
            assert torch.equal(parts[part], theirs[name][part]), (name, part)
        # Activations: their minmax is a mean, over inputs that are quantized already; ours is the true range.
        assert parts["input_scale"] >= theirs[name]["input_scale"]


def test_mean_minmax_is_their_minmax_where_nothing_upstream_is_quantized(tmp_path: Path) -> None:
    model, _, theirs = both(tmp_path, torch.float32)
    x = torch.stack([toy_call(seed)["hidden_states"].flatten() for seed in range(6)])[:, None]  # [B, S = 1, elements]
    statistics = LayerStatistics(x.amin(2), x.amax(2), torch.zeros(6, 1, 8), torch.zeros(6, 1, BINS))
    parts = quantize_linear("pos_embed", model.pos_embed, observe("mean_minmax", statistics))
    # Their mean is a running one, in float32.
    torch.testing.assert_close(parts["input_scale"], theirs["pos_embed"]["input_scale"], rtol=1e-6, atol=0)
    assert torch.equal(parts["input_offset"], theirs["pos_embed"]["input_offset"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights_are_nearer_the_float_ones(tmp_path: Path, dtype: torch.dtype) -> None:
    model, ours, theirs = both(tmp_path, dtype)
    total = differ = nearer = farther = 0
    error_ours = error_theirs = 0.0
    for name in ours:
        weight = model.get_submodule(name).weight.detach().float()
        # What the runtime computes with: the integers times deq_scale, over input_scale.
        a, b = (W8A8Linear(**parts[name]).dequantized_weight() - weight for parts in (ours, theirs))
        total += weight.numel()
        differ += int((ours[name]["weight"] != theirs[name]["weight"]).sum())
        nearer += int((a.abs() < b.abs()).sum())
        farther += int((a.abs() > b.abs()).sum())
        error_ours += float(a.double().square().sum())
        error_theirs += float(b.double().square().sum())
    print(
        f"\n{dtype}: {differ} of {total} int8 weights differ ({100 * differ / total:.2f} %); nearer the float weight: "
        f"ours {nearer}, theirs {farther}; squared error ours/theirs {error_ours / error_theirs:.4f}"
    )
    assert differ > 0
    assert error_ours < error_theirs
    assert nearer > farther
