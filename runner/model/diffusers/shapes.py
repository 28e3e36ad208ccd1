"""How large what a pipeline of diffusers computes is, by what its parts' config.json have in common; nearly right, for
no model is known here by name. No torch: the desk asks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .. import headers
from ..object_file import read
from ..shapes import Shapes
from .rules import TRANSFORMER

Config = Mapping[str, Any]
SIDE = 128  # latents of a side where neither the transformer nor a key says how many: 1024 pixels
TOKENS = 512  # of a prompt where no key says
TEXT_WIDTHS = ("joint_attention_dim", "caption_channels", "text_embed_dim", "text_dim", "cross_attention_dim")
TOGETHER = ("to_q", "to_k", "to_v", "proj_mlp"), ("add_q_proj", "add_k_proj", "add_v_proj")  # linears of one input
OF_TEXT = ("attn2.to_k", "attn2.to_v")  # linears whose input is that of all blocks


def shapes(model: Config, folder: Path) -> Shapes:
    """What a clip, or an image, of a model section is inside the pipeline in `folder`.

    Raises LookupError, TypeError or ValueError where the parts do not tell, OSError where they cannot be read.
    """
    transformer, vae = read(folder / TRANSFORMER / "config.json"), read(folder / "vae" / "config.json")
    space, time = _factors(vae)
    frames = model.get("num_frames") or 1
    height, width = (model[side] or _default(transformer, side) * space for side in ("height", "width"))
    channels = vae.get("latent_channels") or vae["z_dim"]
    latents = (channels, (frames - 1) // time + 1, height // space, width // space)
    patch = transformer.get("patch_size") or 1
    in_time, in_space = (
        (patch[0], patch[-1]) if isinstance(patch, list) else (transformer.get("patch_size_t") or 1, patch)
    )
    folded = max(1, transformer["in_channels"] // channels)  # latents that the pipeline makes one
    tokens = math.prod(latents[1:]) // (in_time * in_space**2 * folded)
    text = (
        model["max_sequence_length"] or TOKENS,
        next((transformer[key] for key in TEXT_WIDTHS if transformer.get(key)), 0),
    )
    dim = transformer["num_attention_heads"] * transformer["attention_head_dim"]
    finest, finer = _channels(vae)
    tile = (min(height, 512) * min(width, 512) * min(frames, 16)) if model["enable_tiling"] else height * width * frames
    return Shapes(
        frames=(frames, height, width),
        latents=latents,
        text=text,
        blocks=sum(transformer.get(key) or 0 for key in ("num_layers", "num_single_layers")),
        inputs=tuple(_inputs(folder / TRANSFORMER)),
        forward=(tokens + text[0]) * dim * 12,  # the residual, its normed twin, the feed-forward around its activation
        decode=int(1.6 * tile * (2 * finer + finest)) + 6 * frames * height * width,
    )


def _factors(vae: Config) -> tuple[int, int]:
    """Pixels that a latent spans on a side, and frames that a latent frame after the first holds."""
    if "spatio_temporal_scaling" in vae:
        halvings = sum(map(bool, vae["spatio_temporal_scaling"]))
        return vae["patch_size"] * 2**halvings, vae["patch_size_t"] * 2**halvings
    space = vae.get("spatial_compression_ratio") or vae.get("scale_factor_spatial")
    time = vae.get("temporal_compression_ratio") or vae.get("scale_factor_temporal")
    stages = vae.get("block_out_channels") or vae.get("dim_mult") or ()
    halved = sum(map(bool, vae.get("temperal_downsample") or ()))  # so spelled there
    return space or 2 ** (len(stages) - 1), time or 2**halved


def _channels(vae: Config) -> tuple[int, int]:
    """Channels of the autoencoder at the two finest resolutions."""
    found = vae.get("block_out_channels") or [vae["base_dim"] * factor for factor in vae["dim_mult"]]
    return found[0], found[min(1, len(found) - 1)]


def _default(transformer: Config, side: str) -> int:
    """Latents of a side that the pipeline makes where it is not told."""
    found = transformer.get(f"sample_{side}") or transformer.get("sample_size") or SIDE
    return int(found[side == "width"] if isinstance(found, list) else found)


def _inputs(folder: Path) -> Iterator[int]:
    """Channels of each distinct input of a linear, by the names and shapes of the weights."""
    seen: set[tuple[str, int]] = set()
    for file in sorted(folder.iterdir()):
        for name, shape in headers.sizes(file):
            layer, _, kind = name.rpartition(".")
            if kind != "weight" or len(shape) != 2:
                continue
            above, _, leaf = layer.rpartition(".")
            group = next((str(number) for number, names in enumerate(TOGETHER) if leaf in names), leaf)
            place = ("text" if layer.endswith(OF_TEXT) else f"{above}.{group}", shape[1])
            if place not in seen:
                seen.add(place)
                yield shape[1]
