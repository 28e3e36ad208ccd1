"""What a call of the pipeline was given: checked and completed before anything is computed."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from ..text import Text
from .rules import TIME_FACTOR, faults

PIXELS = 8  # pixels a latent spans in height and in width


class Size(NamedTuple):
    """Shape of the latents, [B,C,t,h,w]."""

    batch: int
    channels: int
    frames: int
    height: int
    width: int


def common_length(texts: Sequence[Text], max_sequence_length: int) -> int:
    """Tokens that all texts are padded to, so that they can share a batch: those of the embeddings, when there are any.

    Raises ValueError on embeddings of different lengths.
    """
    lengths = {text.embeds.shape[-2] for text in texts if text.embeds is not None}
    if len(lengths) > 1:
        raise ValueError(f"prompt_embeds and negative_prompt_embeds have different lengths: {sorted(lengths)} tokens")
    return lengths.pop() if lengths else max_sequence_length


def full_size(
    num_frames: int | None,
    height: int | None,
    width: int | None,
    latents: torch.Tensor | None,
    config: Any,
    batch: int,
) -> Size:
    """Latent shape of a video. What is None is taken from `latents`, else from the transformer's training size.

    Raises ValueError, naming the nearest sizes, unless there are 4n+1 frames of multiples of 16 pixels, and when
    `latents` have another shape.
    """
    if latents is not None and latents.ndim != 5:
        raise ValueError(f"latents is {list(latents.shape)}; expected [B,{config.in_channels},t,h,w]")
    sample = config.sample_size
    trained = (config.sample_size_t, *((sample, sample) if isinstance(sample, int) else sample))
    grid = trained if latents is None else tuple(latents.shape[2:])
    video = {
        "num_frames": (grid[0] - 1) * TIME_FACTOR + 1 if num_frames is None else num_frames,
        "height": grid[1] * PIXELS if height is None else height,
        "width": grid[2] * PIXELS if width is None else width,
    }
    wrong = [f"{key} is {video[key]}: {sentence}" for key, sentence in faults(video)]
    wrong += [f"{key} is {value}: expected a positive number" for key, value in video.items() if value < 1]
    if wrong:
        raise ValueError("; ".join(wrong))
    frames, rows, columns = video.values()
    size = Size(batch, config.in_channels, (frames - 1) // TIME_FACTOR + 1, rows // PIXELS, columns // PIXELS)
    if latents is not None and tuple(latents.shape) != size:
        raise ValueError(f"latents is {list(latents.shape)}; expected {list(size)} for {batch} prompts and {video}")
    return size
