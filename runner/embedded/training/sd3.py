"""The small Stable Diffusion 3: its parts untrained, their export as a pipeline's folder, and its stills judged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor, nn

from runner.embedded import world
from runner.embedded.training.export import size_of
from runner.embedded.training.heads import KINDS, Asked, Drawn
from runner.embedded.training.scores import ask
from runner.embedded.training.text import CLIP_LENGTH, build_clip_encoder, build_clip_tokenizer, save_clip_tokenizer
from runner.embedded.training.train_vae import start_quiet, to_frames, to_video
from runner.hardware.casting import autocast

WIDTHS = (32, 64)  # of the two text encoders
SHIFT = 3.0  # of the noise levels, the release's (arXiv 2403.03206, equation 23)
DEFAULTS = """\
# What this checkpoint wants where neither the command line nor the recipe says otherwise.
prompts:
  text:
    - a red circle on the left
    - a blue square up close
    - a yellow triangle at the top
    - a green cross in the middle
  calibration:
    - a magenta circle on the right
    - a cyan square at the bottom
    - a red triangle in the middle
    - a blue cross on the left
model:
  height: 64
  width: 64
  max_sequence_length: 8
  text_encoder_3: false
sampler:
  num_sampling_steps: 28
  guidance_scale: 2.0
sample:
  judge: world
"""


def build_vae() -> Any:
    """An untrained autoencoder of the release's kind: 8x8 pixels a latent, 16 channels."""
    vae: Any = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 32, 48, 64),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        sample_size=world.SIZE,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    start_quiet(vae, (".conv2.",), vae.encoder.conv_out.bias)
    return vae


class TextToImage(nn.Module):
    """What is trained jointly: the transformer, its two text encoders (the third is left out), and the heads that
    ask its tokens."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.text_encoder, self.text_encoder_2 = (build_clip_encoder(vocabulary, width) for width in WIDTHS)
        heads, head_dim = 4, 24
        self.transformer: Any = SD3Transformer2DModel(
            sample_size=world.SIZE // 8,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=10,
            num_attention_heads=heads,
            attention_head_dim=head_dim,
            joint_attention_dim=sum(WIDTHS),
            caption_projection_dim=heads * head_dim,
            pooled_projection_dim=sum(WIDTHS),
            pos_embed_max_size=world.SIZE // 16,
        )
        last = self.get_submodule("transformer.proj_out")
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        early, late = (self.get_submodule(f"transformer.transformer_blocks.{i}") for i in (3, 6))
        self.told, self.drawn = Asked(heads * head_dim, KINDS, early), Drawn(heads * head_dim, late)

    def forward(self, noisy: Tensor, timestep: Tensor, ids: Tensor) -> Tensor:
        """Velocity [B, 16, h, w], noise minus latents, of noisy latents at timesteps [B] in 0..1000, under tokens."""
        outputs = [each(ids, output_hidden_states=True) for each in (self.text_encoder, self.text_encoder_2)]
        words = torch.cat([each.hidden_states[-2] for each in outputs], dim=-1)
        pooled = torch.cat([each.text_embeds for each in outputs], dim=-1)
        text = torch.cat([words, torch.zeros_like(words)], dim=1)  # the pipeline has zeros for the third encoder
        return self.transformer(noisy, text, pooled, timestep, return_dict=False)[0]


def make_pipeline(vae: Any, model: TextToImage) -> Any:
    """The parts under the release's solver."""
    tokenizer = build_clip_tokenizer()
    return StableDiffusion3Pipeline(
        transformer=model.transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=vae,
        text_encoder=model.text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=model.text_encoder_2,
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )


def export(folder: Path, vae: Any, model: TextToImage) -> int:
    """Write the pipeline's folder in bfloat16; its size in bytes. ValueError when they are too many to ship."""
    pipeline = make_pipeline(vae, model).to(torch.bfloat16)
    pipeline.save_pretrained(folder)
    for name in ("tokenizer", "tokenizer_2"):
        for file in (folder / name).iterdir():
            file.unlink()
        save_clip_tokenizer(folder / name)
    (folder / "defaults.yaml").write_text(DEFAULTS, encoding="utf-8")
    return size_of(folder)


def draw(pipeline: Any, captions: Sequence[str], **asked: Any) -> list[np.ndarray]:
    """A still of each caption as a clip of one frame, uint8 [1, H, W, 3]; `asked` as `ask` takes it."""
    own: Any = {"negative_prompt": "", "max_sequence_length": CLIP_LENGTH, "output_type": "np"}
    images = ask(pipeline, captions, **asked, **own).images
    return list((images[:, None] * 255).round().astype(np.uint8))


def to_images(stills: Iterable[np.ndarray], device: torch.device | str = "cpu") -> Tensor:
    """Stills uint8 [H, W, 3] -> images [B, 3, H, W] in [-1, 1]."""
    return to_video((still[None] for still in stills), device)[:, :, 0]


def held_out_stills(count: int, seed: int = 10**6) -> list[tuple[np.ndarray, str]]:
    """Stills (and captions) of all combinations that no training iteration draws."""
    rng = np.random.default_rng(seed)
    chosen = world.combinations(motions=world.PLACES)
    return [(world.still(each, rng), world.caption(each)) for each in (chosen[rng.integers(144)] for _ in range(count))]


@torch.no_grad()
def reconstruct(vae: Any, stills: Iterable[np.ndarray]) -> list[np.ndarray]:
    """Each still through the mode of its latents, uint8 [1, H, W, 3]."""
    found = []
    for still in stills:
        with autocast(vae.device):
            latents = vae.encode(to_images([still], vae.device).to(vae.dtype)).latent_dist.mode()
            found.append(to_frames(vae.decode(latents).sample[:, :, None])[0])
    return found


@torch.no_grad()
def scaled(vae: Any) -> Any:
    """Let the config's shift and factor bring latents to mean 0 and deviation 1, as the pipeline applies them."""
    images = to_images((still for still, _ in held_out_stills(96, seed=2)), vae.device)
    means = vae.encode(images.to(vae.dtype)).latent_dist.mean.float()
    vae.register_to_config(shift_factor=float(means.mean()), scaling_factor=float(1 / means.std()))
    return vae
