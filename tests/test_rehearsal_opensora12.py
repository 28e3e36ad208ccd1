"""A rehearsal of Open-Sora 1.2 at its released size: 1.2 billion random bf16 parameters through W8A8, within 20 GiB.

As tests/test_rehearsal.py; a process of its own, so that the memory is this one's. Run it by

    pytest -s -m rehearsal tests/test_rehearsal_opensora12.py
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from rehearsal import ENCODER, rehearse, write

from runner.model.opensora12 import OpenSora12Transformer, OpenSora12VAE

pytestmark = pytest.mark.rehearsal

LIMIT = 20 * 2**30


@pytest.fixture(scope="module")
def released(tiny_opensora12: Path, tmp_path_factory: pytest.TempPathFactory):
    """Folders laid out like the release; of the text encoder one layer of the released width."""
    from transformers import T5Config, T5EncoderModel

    root = tmp_path_factory.mktemp("released")
    with torch.device("meta"):
        transformer, vae = OpenSora12Transformer(), OpenSora12VAE()
    write(root / "OpenSora-STDiT-v3", transformer, "STDiT3")
    latents = {"shift": torch.zeros(vae.shift.shape), "scale": torch.ones(vae.scale.shape)}
    write(root / "OpenSora-VAE-v1.2", vae, "OpenSora12VAE", latents)
    shutil.copytree(tiny_opensora12.parent / "t5-v1_1-xxl", root / "t5-v1_1-xxl")
    vocabulary = json.loads((root / "t5-v1_1-xxl" / "config.json").read_text())["vocab_size"]
    config = T5Config(vocab_size=vocabulary, **ENCODER)
    T5EncoderModel(config).to(torch.bfloat16).save_pretrained(root / "t5-v1_1-xxl")
    yield root / "OpenSora-STDiT-v3"
    shutil.rmtree(root)


def test_the_whole_recipe_at_the_released_size(released: Path, tmp_path: Path) -> None:
    made = rehearse(
        tmp_path,
        LIMIT,
        "+recipe=opensora12_w8a8",
        f"model.checkpoint={released}",
        *("model.num_frames=17", "model.height=64", "model.width=64"),
        *("prompts.text=a calm sea", "model.max_sequence_length=32"),
    )
    # 28 pairs of blocks: qkv and proj, q, kv and proj of the cross attention, the feed-forward's first linear.
    assert len(made.quantized) >= 56 * 6
    assert made.tensors["temporal_blocks.27.attn.qkv.weight"].shape == (3 * 1152, 1152)
