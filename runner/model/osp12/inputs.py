"""What a call of the pipeline was given: checked and completed before anything is computed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from .rules import TIME_FACTOR, faults

PIXELS = 8  # pixels a latent spans in height and in width


@dataclass(frozen=True)
class Text:
    """Prompts as words, or else as embeddings ([B,L,D] or [B,1,L,D]) with their mask ([B,L] or [B,1,L])."""

    prompts: Sequence[str] = ()
    embeds: torch.Tensor | None = None
    mask: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.prompts) if self.embeds is None else len(self.embeds)


class Size(NamedTuple):
    """Shape of the latents, [B,C,t,h,w]."""

    batch: int
    channels: int
    frames: int
    height: int
    width: int


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise ValueError for a value that is not among its choices."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(choices)}")


def given_text(
    name: str,
    prompt: str | Sequence[str] | None,
    embeds: torch.Tensor | None,
    mask: torch.Tensor | None,
    batch: int | None = None,
) -> Text:
    """The one form in which `name` was given.

    Raises ValueError when that is neither or both of them, when embeddings and mask do not fit each other, and when the
    entries are neither one nor `batch`.
    """
    if prompt is None and embeds is None:
        raise ValueError(f"pass {name} or {name}_embeds")
    if prompt is not None and embeds is not None:
        raise ValueError(f"pass {name} or {name}_embeds, not both")
    if embeds is None:
        prompts = [prompt] if isinstance(prompt, str) else prompt
        if not isinstance(prompts, Sequence) or not prompts or not all(isinstance(text, str) for text in prompts):
            raise ValueError(f"{name} is {prompt!r}; expected a string or a list of strings")
        if mask is not None:
            raise ValueError(f"{name}_attention_mask belongs to {name}_embeds, which is not given")
        text = Text(prompts=prompts)
    else:
        if embeds.ndim not in (3, 4) or (embeds.ndim == 4 and embeds.shape[1] != 1):
            raise ValueError(f"{name}_embeds is {list(embeds.shape)}; expected [B,L,D] or [B,1,L,D]")
        if mask is None:
            raise ValueError(f"{name}_embeds needs {name}_attention_mask")
        count, length = embeds.shape[0], embeds.shape[-2]
        if tuple(mask.shape) not in ((count, length), (count, 1, length)):
            raise ValueError(f"{name}_attention_mask is {list(mask.shape)}; {name}_embeds is {list(embeds.shape)}")
        text = Text(embeds=embeds, mask=mask)
    if batch is not None and len(text) not in (1, batch):
        raise ValueError(f"{name} has {len(text)} entries for {batch} prompts")
    return text


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
