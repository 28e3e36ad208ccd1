"""How large what Open-Sora 1.2 computes is. No torch here: the desk asks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..shapes import Shapes
from .sizes import dframe_to_frame, latent_sizes

SINUSOIDS = 256  # of a timestep, before its embedding
RELEASED = {"in_channels": 4, "hidden_size": 1152, "depth": 28, "mlp_ratio": 4.0, "caption_channels": 4096}
CHANNELS = (128, 256)  # of the released 2D autoencoder at the two finest resolutions


def shapes(model: Mapping[str, Any], folder: Path) -> Shapes:
    """What a clip of a settled model section is inside the transformer in `folder` and the autoencoder.

    Keys that config.json leaves out have the released values. Raises OSError or ValueError for one that is not
    readable.
    """
    known = {**RELEASED, **json.loads((folder / "config.json").read_text(encoding="utf-8"))}
    dim, caption = known["hidden_size"], known["caption_channels"]
    inner = int(dim * known["mlp_ratio"])
    frames, height, width = model["num_frames"], model["height"], model["width"]
    latents = latent_sizes(frames, height, width, model["micro_frame_size"])
    tokens = latents[0] * -(-latents[1] // 2) * -(-latents[2] // 2)
    # The embedders of time and of frames a second, their modulation, the text before and in its projection and for the
    # blocks; then block by block (spatial, temporal) two attentions, of which the text is known, and the feed-forward.
    once = (SINUSOIDS, dim, SINUSOIDS, dim, dim, caption, dim, dim)
    again = dframe_to_frame(model["condition_frame_length"]) if model["loop"] > 1 else 0
    video = frames + (model["loop"] - 1) * (frames - again)
    return Shapes(
        frames=(video, height, width),
        latents=(known["in_channels"], *latents),
        text=(model["max_sequence_length"], caption),
        blocks=2 * known["depth"],
        inputs=(*once, *(dim, dim, dim, dim, dim, inner) * (2 * known["depth"]), dim),
        forward=tokens * dim * 12,  # the residual, its normed twin, the feed-forward before and after its activation
        # Around the last change of resolution of the frames that go through at once; and the video, whole and joined.
        decode=int(1.6 * model["micro_batch_size"] * height * width * (2 * CHANNELS[1] + CHANNELS[0]))
        + 6 * video * height * width,
        whole_latents=True,
    )
