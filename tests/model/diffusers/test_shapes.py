"""How large what the released pipelines compute is, by their published configurations alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runner.model.diffusers import shapes as foreign
from runner.model.sd3 import shapes as sd3

KL = {"block_out_channels": [128, 256, 512, 512], "latent_channels": 16}
SD3 = {"num_attention_heads": 24, "attention_head_dim": 64, "num_layers": 24, "in_channels": 16, "patch_size": 2}
SD3 |= {"sample_size": 128, "joint_attention_dim": 4096}
FLUX = {"num_attention_heads": 24, "attention_head_dim": 128, "in_channels": 64, "patch_size": 1, "num_layers": 19}
FLUX |= {"num_single_layers": 38, "joint_attention_dim": 4096}
WAN = {"num_attention_heads": 12, "attention_head_dim": 128, "in_channels": 16, "patch_size": [1, 2, 2]}
WAN |= {"num_layers": 30, "text_dim": 4096}
WAN_VAE = {"z_dim": 16, "base_dim": 96, "dim_mult": [1, 2, 4, 4], "temperal_downsample": [False, True, True]}
LTX = {"num_attention_heads": 32, "attention_head_dim": 64, "in_channels": 128, "patch_size": 1, "patch_size_t": 1}
LTX |= {"num_layers": 28, "caption_channels": 4096, "cross_attention_dim": 2048}
LTX_VAE = {"latent_channels": 128, "block_out_channels": [128, 256, 512, 512], "patch_size": 4, "patch_size_t": 1}
LTX_VAE |= {"spatio_temporal_scaling": [True, True, True, False]}
COG = {"num_attention_heads": 30, "attention_head_dim": 64, "in_channels": 16, "patch_size": 2, "num_layers": 30}
COG |= {"text_embed_dim": 4096, "sample_height": 60, "sample_width": 90}
COG_VAE = {**KL, "temporal_compression_ratio": 4}


def folder(root: Path, transformer: dict[str, Any], vae: dict[str, Any]) -> Path:
    for name, config in {"transformer": transformer, "vae": vae}.items():
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps(config))
    return root


def section(**model: Any) -> dict[str, Any]:
    return {"height": None, "width": None, "max_sequence_length": None, "enable_tiling": False, **model}


@pytest.mark.parametrize(
    ("transformer", "vae", "model", "frames", "latents", "blocks", "tokens"),
    [
        (SD3, KL, {}, (1, 1024, 1024), (16, 1, 128, 128), 24, 4096),
        (FLUX, KL, {"height": 768}, (1, 768, 1024), (16, 1, 96, 128), 57, 3072),
        (WAN, WAN_VAE, {"num_frames": 81, "height": 480, "width": 832}, (81, 480, 832), (16, 21, 60, 104), 30, 32760),
        (LTX, LTX_VAE, {"num_frames": 161, "height": 512, "width": 704}, (161, 512, 704), (128, 21, 16, 22), 28, 7392),
        (COG, COG_VAE, {"num_frames": 49}, (49, 480, 720), (16, 13, 60, 90), 30, 17550),
    ],
    ids=["sd3", "flux", "wan", "ltx", "cogvideox"],
)  # fmt: skip
def test_released_sizes(tmp_path, transformer, vae, model, frames, latents, blocks, tokens):
    found = foreign.shapes(section(**model), folder(tmp_path, transformer, vae))
    assert (found.frames, found.latents, found.blocks) == (frames, latents, blocks)
    width = transformer["num_attention_heads"] * transformer["attention_head_dim"]
    assert found.text == (512, 4096) and found.forward == (tokens + 512) * width * 12


def test_text_of_stable_diffusion_3_is_of_two_kinds_of_encoders(tmp_path):
    place = folder(tmp_path, SD3, KL)
    assert sd3.shapes(section(), place).text == (77 + 256, 4096)
    assert sd3.shapes(section(max_sequence_length=77), place).text == (154, 4096)


def test_linears_of_one_input_are_one(tmp_path):
    """Three of an attention share theirs, and the keys and values of the text in all blocks."""
    place = folder(tmp_path, SD3, KL)
    weights = [f"blocks.{n}.attn1.{leaf}.weight" for n in (0, 1) for leaf in ("to_q", "to_k", "to_v", "to_out.0")]
    weights += [f"blocks.{n}.attn2.{leaf}.weight" for n in (0, 1) for leaf in ("to_q", "to_k", "to_v")]
    head = {name: {"dtype": "F32", "shape": [8, 16], "data_offsets": [0, 0]} for name in weights}
    head |= {"pos.weight": {"dtype": "F32", "shape": [8, 16, 2, 2], "data_offsets": [0, 0]}}
    head |= {"norm.weight": {"dtype": "F32", "shape": [16], "data_offsets": [0, 0]}}
    text = json.dumps(head).encode()
    (place / "transformer" / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    assert foreign.shapes(section(), place).inputs == (16,) * (2 * 3 + 1)


@pytest.mark.parametrize("broken", [{}, {"in_channels": 16, "num_attention_heads": 2}, [1]])
def test_what_does_not_tell_raises_what_the_desk_expects(tmp_path, broken):
    with pytest.raises((LookupError, TypeError, ValueError, OSError)):
        foreign.shapes(section(), folder(tmp_path, broken, KL))
