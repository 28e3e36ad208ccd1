"""How large what Open-Sora-Plan v1.2 computes is. No torch here: the desk asks."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.model.osp12.rules import LAYERS, SIDE_FACTOR, TIME_FACTOR
from runner.model.shapes import Shapes


def shapes(model: Mapping[str, Any], folder: Path) -> Shapes:
    """What a clip of a model section is inside the transformer in `folder` and the VAE of the section.

    Keys that a config.json leaves out have the released values. Raises OSError or ValueError for one that is not
    readable.
    """
    transformer: dict[str, Any] = {
        "num_attention_heads": 24,
        "attention_head_dim": 96,
        "in_channels": 4,
        "num_layers": LAYERS,
    }
    transformer |= {"caption_channels": 4096, **json.loads((folder / "config.json").read_text(encoding="utf-8"))}
    vae: dict[str, Any] = {"hidden_size": 128, "hidden_size_mult": (1, 2, 4, 4)}
    if os.path.isabs(model["vae"] or ""):
        vae |= json.loads((Path(model["vae"]) / "config.json").read_text(encoding="utf-8"))
    frames, height, width = model["num_frames"], model["height"], model["width"]
    latents = (transformer["in_channels"], (frames - 1) // TIME_FACTOR + 1, height // 8, width // 8)
    tokens = latents[1] * (height // SIDE_FACTOR) * (width // SIDE_FACTOR)
    dim, caption = (
        transformer["num_attention_heads"] * transformer["attention_head_dim"],
        transformer["caption_channels"],
    )
    # The embedder of the timestep, the text before and after its projection, then block by block; q, k and v share one.
    inputs = (256, dim, dim, caption, dim, dim, *(dim, dim, dim, dim, dim, 4 * dim) * transformer["num_layers"], dim)
    side = (256 if model["save_memory"] else 512) if model["enable_tiling"] else max(height, width)
    tile = (min(frames, 29) if model["enable_tiling"] else frames) * min(height, side) * min(width, side)
    finest, finer = (vae["hidden_size"] * factor for factor in vae["hidden_size_mult"][:2])
    return Shapes(
        frames=(frames, height, width),
        latents=latents,
        text=(model["max_sequence_length"], caption),
        blocks=transformer["num_layers"],
        inputs=inputs,
        forward=tokens * dim * 12,  # the residual, its normed twin, the feed-forward before and after its activation
        # Around the last change of resolution; what convolutions copy, as measured on a CPU; and the video itself.
        decode=int(1.6 * tile * (2 * finer + finest)) + 6 * frames * height * width,
    )
