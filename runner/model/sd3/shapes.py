"""How large what Stable Diffusion 3 computes is. No torch: the desk asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from runner.model.diffusers import shapes as foreign
from runner.model.shapes import Shapes

CLIP_TOKENS = 77  # of the first two encoders, before those of the third, or the zeros in its place
T5_TOKENS = 256  # of the third, where no key says


def shapes(model: Mapping[str, Any], folder: Path) -> Shapes:
    """What an image of a model section is inside the pipeline in `folder`; raises as the foreign ones' does."""
    found = foreign.shapes(model, folder)
    tokens = CLIP_TOKENS + (model["max_sequence_length"] or T5_TOKENS)
    return replace(found, text=(tokens, found.text[1]), recomputed=("pos_embed.pos_embed",))
