"""Modules that compute in a wider dtype than their weights are stored in: nearer to float64, layer by layer too."""

from __future__ import annotations

import copy

import pytest
import torch
from support import opensora12_vectors as opensora12
from support import osp12_vectors as osp12

from runner.hardware import casting
from runner.hardware.casting import cast
from runner.model.osp12 import OSP12VAE
from runner.model.text import encode_texts, load_text_encoder

DATA = osp12.DATA


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch):
    """The test vectors' weights are small; have the ones of some size be cast layer by layer."""
    monkeypatch.setattr(casting, "LARGE", 64)


def transformers():
    for name, case in osp12.CASES:
        yield f"osp12-{name}-{case}", osp12.load(name, torch.bfloat16), osp12.vectors(name, case)[0]
    for case in opensora12.CASES:
        yield f"opensora12-{case}", opensora12.load(torch.bfloat16), opensora12.vectors(case)[0]


def double(value):
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def distance(output, exact):
    return float((output.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize(("stored", "call"), [pytest.param(m, c, id=name) for name, m, c in transformers()])
@torch.inference_mode()
def test_bf16_weights_computed_in_float32_are_nearer_to_a_float64_run(stored, call):
    exact = osp12.run(copy.deepcopy(stored).double(), **{name: double(value) for name, value in call.items()})
    native = osp12.run(copy.deepcopy(stored), **call)
    wide = cast(copy.deepcopy(stored), torch.float32)
    output = osp12.run(wide, **call)
    assert wide.dtype == output.dtype == torch.float32
    assert distance(output, exact) < 0.01 * distance(native, exact)


@pytest.mark.parametrize(("stored", "call"), [pytest.param(m, c, id=name) for name, m, c in transformers()])
@torch.inference_mode()
def test_layer_by_layer_gives_the_same_bytes_and_leaves_names_and_weights(stored, call):
    whole, layerwise = cast(copy.deepcopy(stored), torch.float32), cast(copy.deepcopy(stored), torch.float32, True)
    assert layerwise.dtype == torch.float32 and type(layerwise).__name__ == type(stored).__name__
    assert torch.equal(osp12.run(whole, **call), osp12.run(layerwise, **call))
    before, after = stored.state_dict(), layerwise.state_dict()
    assert before.keys() == after.keys()
    held = {name for name, tensor in after.items() if tensor.dtype == torch.bfloat16}
    assert held and all(after[name].numel() >= 64 for name in held)
    assert all(torch.equal(before[name].float(), after[name].float()) for name in before)


@torch.inference_mode()
def test_an_autoencoder_and_a_text_encoder_too():
    vae = OSP12VAE.from_pretrained(DATA / "vae_a/vae", torch_dtype=torch.bfloat16)
    latents = torch.randn(1, 4, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    whole, layerwise = (cast(copy.deepcopy(vae), torch.float32, layers) for layers in (False, True))
    assert layerwise.dtype == torch.float32 and any(p.dtype == torch.bfloat16 for p in layerwise.parameters())
    assert torch.equal(whole.decode(latents), layerwise.decode(latents))

    encoder, tokenizer = load_text_encoder(str(DATA / "text_encoder"), torch.bfloat16)
    whole, layerwise = (cast(copy.deepcopy(encoder.eval()), torch.float32, layers) for layers in (False, True))
    assert layerwise.dtype == torch.float32 and layerwise.shared.weight.dtype == torch.float32
    assert layerwise.state_dict()["shared.weight"].dtype == torch.bfloat16  # a vocabulary is never cast whole
    a, b = (encode_texts(["a red boat"], each, tokenizer, 8, torch.device("cpu"))[0] for each in (whole, layerwise))
    assert a.dtype == torch.float32 and torch.equal(a, b)


def test_quantized_layers_carry_their_bits():
    from runner.quant.w8a8 import W8A8Linear

    parts = {
        "weight": torch.ones(2, 4, dtype=torch.int8),
        "weight_scale": torch.ones(2, 1, dtype=torch.bfloat16),
        "weight_offset": torch.zeros(2, 1, dtype=torch.bfloat16),
        "input_scale": torch.ones(1, dtype=torch.bfloat16),
        "input_offset": torch.zeros(1, dtype=torch.bfloat16),
        "quant_bias": torch.zeros(2, dtype=torch.int32),
        "deq_scale": torch.ones(2),
        "bias": torch.zeros(2, dtype=torch.bfloat16),
    }
    module = torch.nn.Sequential(W8A8Linear(**parts), torch.nn.Linear(2, 2, dtype=torch.bfloat16))
    cast(module, torch.float32)
    assert module[0].input_scale.dtype == torch.bfloat16 and module[1].weight.dtype == torch.float32
    assert module(torch.ones(1, 4)).dtype == torch.float32
