"""Text on its way into a pipeline, alike for every model here: the encoder with its tokenizer, words or embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers.utils import logging
from packaging.version import Version
from transformers import (
    AutoConfig,
    AutoTokenizer,
    MT5EncoderModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5EncoderModel,
)

from .checkpoint import CheckpointError

logger = logging.get_logger(__name__)

TEXT_ENCODERS: dict[str, Any] = {"mt5": MT5EncoderModel, "t5": T5EncoderModel}  # by the model_type of their config.json


@cache
def _warn_once(message: str) -> None:
    logger.warning(message)


@dataclass(frozen=True)
class Text:
    """Prompts as words, or else as embeddings ([B,L,D] or [B,1,L,D]) with their mask ([B,L] or [B,1,L])."""

    prompts: Sequence[str] = ()
    embeds: torch.Tensor | None = None
    mask: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.prompts) if self.embeds is None else len(self.embeds)


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


def encode_texts(
    texts: Sequence[str],
    text_encoder: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    max_sequence_length: int,
    device: torch.device,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings [B,L,D] in the text encoder's dtype and mask [B,L] (int64, 1 keeps) of texts as they stand.

    L is max_sequence_length: shorter texts are padded (the mask drops the padding), longer ones cut with a warning.
    """
    for text, ids in zip(texts, tokenizer(list(texts)).input_ids, strict=True):
        if len(ids) > max_sequence_length:
            _warn_once(f"the prompt {text!r} is {len(ids)} tokens long and was cut to {max_sequence_length}")
    tokens = tokenizer(
        list(texts), padding="max_length", max_length=max_sequence_length, truncation=True, return_tensors="pt"
    ).to(device)
    embeds = text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask)[0]
    return embeds, tokens.attention_mask


def load_text_encoder(
    name: str,
    dtype: torch.dtype = torch.float32,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The encoder half of a T5 or mT5 and its tokenizer, of a folder or a hub id `owner/repository[/folder]`.

    Raises CheckpointError unless the place has the config.json of one, all weights of an encoder, and a tokenizer.
    """
    options: dict[str, Any] = {}
    if not Path(name).expanduser().is_dir():
        owner, repository, *inner = [*name.split("/"), ""] if name.count("/") else [name, ""]
        if not owner.strip(".~") or not repository:
            raise CheckpointError(f"there is no folder {name} with a text encoder")
        name = f"{owner}/{repository}"
        options = {"subfolder": "/".join(inner).strip("/"), "revision": revision, "cache_dir": cache_dir}
    elif not (Path(name).expanduser() / "config.json").is_file():
        raise CheckpointError(f"{name} is no text encoder: it has no config.json")
    try:
        config = AutoConfig.from_pretrained(name, **options)
        if config.model_type not in TEXT_ENCODERS:
            raise CheckpointError(
                f"{name} holds a {config.model_type!r}; the text encoder must be one of {', '.join(TEXT_ENCODERS)}"
            )
        key = "dtype" if Version(transformers.__version__) >= Version("4.56") else "torch_dtype"
        encoder, info = TEXT_ENCODERS[config.model_type].from_pretrained(
            name, config=config, output_loading_info=True, low_cpu_mem_usage=True, **{key: dtype}, **options
        )
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
    except CheckpointError:
        raise
    except Exception as error:  # a broken file raises anything from OSError to the reader's own kinds
        raise CheckpointError(
            f"the text encoder {name} cannot be read (expected config.json, the weights of an encoder, and "
            f"tokenizer.json or spiece.model): {error}"
        ) from error
    # transformers would go on with random tensors, or, in version 4, with some that have no storage
    if missing := sorted({*info["missing_keys"], *(name for name, p in encoder.named_parameters() if p.is_meta)}):
        raise CheckpointError(f"the text encoder {name} lacks {len(missing)} tensors: {', '.join(missing[:12])}")
    if len(tokenizer) - len(tokenizer.all_special_tokens) < 2:  # transformers 5 makes an empty one of no file
        raise CheckpointError(f"the text encoder {name} has no tokenizer: expected tokenizer.json or spiece.model")
    return encoder, tokenizer
