"""A rehearsal at the released size: 2.77 billion random bf16 parameters through the whole recipe, within 14 GiB.

Random weights say nothing of quality; what is held here is that the released layout loads, runs, quantizes, exports and
loads again, and how much memory that takes. Needs 24 GiB of memory and 30 GB of disk; minutes. Run it by

    pytest -s -m rehearsal tests/test_rehearsal.py
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from rehearsal import ENCODER, rehearse, write

from runner.model.osp12.transformer import OSP12Transformer
from runner.model.osp12.vae import OSP12VAE

pytestmark = pytest.mark.rehearsal

DATA = Path(__file__).parent / "data" / "osp12"
LIMIT = 14 * 2**30


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory):
    """A folder laid out like the release: transformer, VAE, and a one-layer mT5 of the released width."""
    from transformers import MT5Config, MT5EncoderModel

    root = tmp_path_factory.mktemp("released")
    with torch.device("meta"):
        transformer = OSP12Transformer(sample_size=[60, 80], sample_size_t=8, interpolation_scale_h=1.0)
        vae = OSP12VAE()
    write(root / "29x480p", transformer, "OpenSoraT2V")
    write(root / "vae", vae, "CausalVAEModel")
    shutil.copytree(DATA / "text_encoder", root / "text_encoder")
    vocabulary = json.loads((DATA / "text_encoder" / "config.json").read_text())["vocab_size"]
    config = MT5Config(vocab_size=vocabulary, **ENCODER)
    MT5EncoderModel(config).to(torch.bfloat16).save_pretrained(root / "text_encoder")
    yield root
    shutil.rmtree(root)


def test_the_whole_recipe_at_the_released_size(released: Path, tmp_path: Path) -> None:
    made = rehearse(
        tmp_path,
        LIMIT,
        "+recipe=osp12_w8a8",
        f"model.checkpoint={released / '29x480p'}",
        *("model.num_frames=5", "model.height=128", "model.width=128"),
        "prompts.text=a quiet harbor at dawn",
    )
    # 32 blocks of 4 + 4 attention projections and the feed-forward's first linear, and the caption projection's two.
    assert len(made.quantized) == 32 * 9 + 2
    numbers = sum(made.tensors[key].numel() for key in made.quantized)
    assert numbers == 32 * (8 * 2304**2 + 2304 * 9216) + 2304 * (4096 + 2304)
    weight, scale = (made.tensors[f"transformer_blocks.31.attn2.to_v.{name}"] for name in ("weight", "weight_scale"))
    assert weight.dtype == torch.int8 and int(weight.abs().max()) == 127 and scale.shape == (2304, 1)
