"""How large what a model computes is, told from its configuration files and the heads of its weight files alone.
Imports no torch: the desk asks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shapes:
    """One clip of a configuration, as `shapes(model, checkpoint folder)` of a room's shapes.py tells it."""

    frames: tuple[int, int, int]  # [T, H, W] of the clip
    latents: tuple[int, ...]  # of the clip, [C, t, h, w]
    text: tuple[int, int]  # tokens and channels of an encoded prompt
    blocks: int  # of the transformer
    inputs: tuple[int, ...]  # channels of each distinct input of a linear, of which dump keeps statistics
    forward: int  # elements that are there at once in a forward of one clip, at most
    decode: int  # the same in decoding it
    whole_latents: bool = False  # whether latents are float32, whatever the model is in
    recomputed: tuple[str, ...] = ()  # tensors in the transformer's weight files that are no weights: none is exported
