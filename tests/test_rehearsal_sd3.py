"""A rehearsal of Stable Diffusion 3 medium at its released size: 2 billion random bf16 parameters through W8A8, within
20 GiB.

As tests/test_rehearsal.py; a process of its own, so that the memory is this one's. Run it by

    pytest -s -m rehearsal tests/test_rehearsal_sd3.py
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from model.diffusers.tiny import tokenizer
from rehearsal import ENCODER, random_state, rehearse, write
from safetensors.torch import save_file

pytestmark = pytest.mark.rehearsal

LIMIT = 20 * 2**30


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory):
    """A folder laid out like the release; vocabularies are of bytes, the third text encoder has one layer."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    root = tmp_path_factory.mktemp("released") / "sd3"
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "vocab_size": 300}
    small = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    large = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
    with torch.device("meta"):
        transformer = diffusers.SD3Transformer2DModel(
            sample_size=128, patch_size=2, in_channels=16, num_layers=24, attention_head_dim=64,
            num_attention_heads=24, joint_attention_dim=4096, caption_projection_dim=1536,
            pooled_projection_dim=2048, out_channels=16, pos_embed_max_size=192,
        )  # fmt: skip
        vae = diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=16, norm_num_groups=32,
            use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.0609, scaling_factor=1.5305,
        )  # fmt: skip
        encoders = {
            "text_encoder": CLIPTextModelWithProjection(
                CLIPTextConfig(**small, **ends, projection_dim=768, architectures=["CLIPTextModelWithProjection"])
            ),
            "text_encoder_2": CLIPTextModelWithProjection(
                CLIPTextConfig(**large, **ends, projection_dim=1280, architectures=["CLIPTextModelWithProjection"])
            ),
            "text_encoder_3": T5EncoderModel(T5Config(vocab_size=300, **ENCODER)),
        }
    index = {}
    for name, part in (("transformer", transformer), ("vae", vae)):
        write(root / name, part, type(part).__name__)
        index[name] = ["diffusers", type(part).__name__]
    for place, (name, encoder) in enumerate(encoders.items()):
        encoder.config.save_pretrained(root / name)
        save_file(random_state(encoder), root / name / "model.safetensors", {"format": "pt"})
        words = name.replace("text_encoder", "tokenizer")
        tokenizer("clip" if place < 2 else "t5").save_pretrained(root / words)
        index |= {name: ["transformers", type(encoder).__name__], words: ["transformers", "PreTrainedTokenizerFast"]}
    diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(root / "scheduler")
    index |= {"scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}
    (root / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusion3Pipeline", **index}))
    yield root
    shutil.rmtree(root)


def test_the_whole_recipe_at_the_released_size(released: Path, tmp_path: Path) -> None:
    made = rehearse(
        tmp_path,
        LIMIT,
        "+recipe=sd3_w8a8",
        f"model.checkpoint={released}",
        *("model.height=64", "model.width=64", "model.max_sequence_length=16"),
        "prompts.text=a quiet harbor at dawn",
    )
    assert made.tensors["transformer_blocks.23.attn.to_q.weight"].shape == (1536, 1536)
    assert made.tensors["transformer_blocks.0.ff.net.0.proj.weight"].dtype == torch.int8
    kept = ("context_embedder.weight", "proj_out.weight")
    assert all(made.description[name] == "FLOAT" for name in kept)
