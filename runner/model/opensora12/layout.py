"""The layout of Open-Sora 1.2: spatial and temporal blocks take turns; each attends to the text, too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..layout import TOKENS, Attention, Block, Cut, Grid, Kind, Layout, in_turn

if TYPE_CHECKING:
    from .transformer import OpenSora12Transformer

TEXT = ("encoder_hidden_states",)
LISTS = ("spatial_blocks", "temporal_blocks")
# Between whole frames, so that attention over space stays on one device; that over time needs all frames of some places
# there. The number of frames that a block is given is that of its part; the rotation goes with attention over time.
CUTS = (
    Cut("spatial_blocks.0", TOKENS, 1, "frame"),
    *(Cut(f"{name}.*", "modulation", 1, "frame") for name in LISTS),
)


def layout(transformer: OpenSora12Transformer) -> Layout:
    """What the transformer says of itself."""
    lists, names = in_turn(transformer, (LISTS,))
    rows, columns = transformer.patch_rows, transformer.patch_columns
    config: Any = transformer.config
    attentions = []
    for name in names:
        block: Any = transformer.get_submodule(name)
        heads, size = config.num_heads, config.hidden_size // config.num_heads
        kind: Kind = "time" if block.temporal else "space"
        attentions.append(Attention(f"{name}.attn", heads, size, kind, (TOKENS,), (TOKENS,)))
        attentions.append(Attention(f"{name}.cross_attn", heads, size, "cross", (TOKENS,), TEXT))

    def grid(call: Mapping[str, Any]) -> Grid:
        _, _, frames, height, width = call["x"].shape
        return frames, -(-height // rows), -(-width // columns)

    return Layout(lists, tuple(Block(name, (TOKENS,)) for name in names), tuple(attentions), grid, CUTS)
