"""The small Open-Sora 1.2: its parts untrained, their export in the four released folders, and its clips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from runner.embedded import world
from runner.embedded.training.export import CLIPS, export_t5, size_of, write_weights
from runner.embedded.training.heads import KINDS, Asked, Drawn
from runner.embedded.training.scores import ask
from runner.embedded.training.text import build_encoder, write_json
from runner.embedded.training.train_vae import start_quiet, to_frames, to_video
from runner.hardware.casting import autocast
from runner.model.opensora12.transformer import WHOLE_FLOATS, OpenSora12Transformer
from runner.model.opensora12.vae import OpenSora12VAE

FPS = 8
GRID = (world.SIZE // 16, world.SIZE // 16)  # tokens of a frame
LENGTH = 16  # tokens of a prompt
LATENTS = 10  # frames of the longer clips, of 34 frames; those of 17 have 5
SPATIAL: dict[str, Any] = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [32, 32, 48, 64],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 8,
    "sample_size": world.SIZE,
    "mid_block_add_attention": False,
}
TEMPORAL: dict[str, Any] = {
    "type": "VAE_Temporal_SD",
    "from_pretrained": None,
    "filters": 32,
    "num_res_blocks": 1,
    "channel_multipliers": [1, 1, 2, 2],
    "temporal_downsample": [False, True, True],
    "num_groups": 8,
}
DEFAULTS = f"""{CLIPS}\
  aes: null
sampler:
  num_sampling_steps: 30
  guidance_scale: 2.0
sample:
  judge: world
"""


def build_vae() -> OpenSora12VAE:
    """An untrained autoencoder of both halves."""
    two = {"type": "VideoAutoencoderKL", "from_pretrained": "vae2d", "subfolder": None}
    vae = OpenSora12VAE(vae_2d=two, vae_temporal=TEMPORAL, spatial=SPATIAL)
    start_quiet(vae.spatial, (".conv2.",), vae.spatial.quant_conv.bias)
    start_quiet(vae.temporal_vae, ("res_blocks.*conv2",), vae.temporal_vae.quant_conv.conv.bias)
    return vae


class TextToVideo(nn.Module):
    """What is trained jointly: the transformer, its text encoder, and the heads that ask its tokens."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        width, heads, text_width = 96, 4, 64
        self.text_encoder = build_encoder(vocabulary, text_width)
        self.transformer = OpenSora12Transformer(
            input_sq_size=world.SIZE,
            hidden_size=width,
            depth=7,
            num_heads=heads,
            caption_channels=text_width,
            model_max_length=LENGTH,
        )
        nn.init.zeros_(self.transformer.final_layer.linear.weight)
        nn.init.zeros_(self.transformer.final_layer.linear.bias)
        early, late = (self.transformer.temporal_blocks[i] for i in (1, 4))
        self.place, self.told = Asked(width, (LATENTS, *GRID), early), Asked(width, KINDS, early)
        self.drawn = Drawn(width, late)

    def forward(
        self, noisy: Tensor, timestep: Tensor, ids: Tensor, mask: Tensor, wordless: Tensor, x_mask: Tensor
    ) -> Tensor:
        """Velocity [B, 4, t, h, w], latents minus noise, at timesteps [B] in 0..1000, under captions [B, L].

        wordless: [B], captions that the embedding of no text stands for; x_mask: [B, t], frames that are noisy.
        """
        text = self.text_encoder(input_ids=ids, attention_mask=mask)[0]
        nothing = self.transformer.y_embedder.y_embedding[: text.shape[1]]
        text = torch.where(wordless[:, None, None], nothing, text)
        size = {name: torch.tensor([float(v)]) for name, v in (("fps", FPS), ("height", world.SIZE))}
        output = self.transformer(noisy, timestep, text[:, None], mask, x_mask, **size, width=size["height"])
        return output.sample[:, : noisy.shape[1]]


FIRST = ("a red circle moving left", "a blue square growing")  # whose first frames ship


def export(folder: Path, vae: OpenSora12VAE, model: TextToVideo) -> int:
    """Write the checkpoint: transformer, `vae3d`, `vae2d` (a config: the weights are in vae3d), `text_encoder`, and
    the first frames of clips to go on from.

    Its size in bytes; ValueError when they are too many to ship.
    """
    for part in (folder, folder / "vae2d", folder / "vae3d"):
        part.mkdir(parents=True, exist_ok=True)
    given = {key: value for key, value in model.transformer.config.items() if not key.startswith("_")}
    write_json(folder / "config.json", {"model_type": "STDiT3", "architectures": ["STDiT3"], **given})
    write_weights(folder / "model.safetensors", model.transformer, WHOLE_FLOATS)
    write_json(folder / "vae2d" / "config.json", {"_class_name": "AutoencoderKL", **SPATIAL})
    config = {key: value for key, value in vae.config.items() if not key.startswith("_") and key != "spatial"}
    write_json(folder / "vae3d" / "config.json", {"model_type": "VideoAutoencoderPipeline", **config})
    write_weights(folder / "vae3d" / "model.safetensors", vae, ("shift", "scale"))
    export_t5(folder / "text_encoder", model.text_encoder)
    (folder / "defaults.yaml").write_text(DEFAULTS, encoding="utf-8")
    for number, caption in enumerate(FIRST):
        scene = world.scene(world.parse(caption), np.random.default_rng(number))
        Image.fromarray(world.render(scene)[0]).save(folder / f"first-{number:03d}.png")
    return size_of(folder)


def film(
    pipeline: Any,
    captions: Sequence[str],
    frames: int = world.FRAMES,
    first: Sequence[Tensor] | None = None,
    **asked: Any,
) -> np.ndarray:
    """A clip of each caption, uint8 [B, T, H, W, 3]; `first` [3, H, W] in [-1, 1] are their first frames, `asked` as
    `ask` takes it."""
    own: Any = {"num_frames": frames, "fps": FPS, "aes": None, "max_sequence_length": LENGTH}
    if first is not None:
        own |= {"reference_path": [[each] for each in first], "mask_strategy": "0"}
    return ask(pipeline, captions, **asked, **own).frames


def reconstruct(vae: OpenSora12VAE, clips: list[np.ndarray]) -> list[np.ndarray]:
    """Each clip through the means of its latents, uint8 [T, H, W, 3]."""
    found = []
    for clip in clips:
        with torch.no_grad(), autocast(vae.device):
            latents = vae.encode(to_video([clip], vae.device), sample_posterior=False)
            found.append(to_frames(vae.decode(latents, len(clip)))[0])
    return found
