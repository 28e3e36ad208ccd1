"""The layout of Open-Sora-Plan v1.2: one list of blocks, each over all tokens of the video and then over the text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..layout import TOKENS, Attention, Block, Cut, Grid, Layout, in_turn

if TYPE_CHECKING:
    from .transformer import OSP12Transformer

TEXT = ("encoder_hidden_states",)
# The bias on the logits lies over the keys, which are whole where heads attend: it is not cut.
CUTS = (Cut("transformer_blocks.0", TOKENS, 1), Cut("transformer_blocks.*", "rotary", 0))


def layout(transformer: OSP12Transformer) -> Layout:
    """What the transformer says of itself."""
    lists, names = in_turn(transformer, ("transformer_blocks",))
    config: Any = transformer.config
    heads, size, patch = config.num_attention_heads, transformer.head_dim, transformer.patch_size
    attentions = (
        attention
        for name in names
        for attention in (
            Attention(f"{name}.attn1", heads, size, "self", (TOKENS,), (TOKENS,)),
            Attention(f"{name}.attn2", heads, size, "cross", (TOKENS,), TEXT),
        )
    )

    def grid(call: Mapping[str, Any]) -> Grid:
        _, _, frames, height, width = call["hidden_states"].shape
        return frames, height // patch, width // patch

    return Layout(lists, tuple(Block(name, (TOKENS,)) for name in names), tuple(attentions), grid, CUTS)
