"""The small text encoders: a word tokenizer with T5's special tokens and a two-layer T5; CLIP's kinds of both."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from string import ascii_lowercase
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from runner.embedded import world

SPECIAL = ("<pad>", "</s>", "<unk>")  # with T5's indices
CLIP_ENDS = ("<|startoftext|>", "<|endoftext|>")  # the last two of the vocabulary, as in CLIP's
CLIP_LENGTH = 8  # the longest captions of stills, "a red circle on the left", and their ends


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Every word of the captions is a token; `</s>` ends each text; unknown words become `<unk>`."""
    words = sorted({word for text in world.captions() for word in text.split()})
    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_options())


def _options() -> dict[str, Any]:
    return {
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "model_max_length": 512,
        "model_input_names": ["input_ids", "attention_mask"],
    }


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """tokenizer.json and a tokenizer_config.json that transformers 4 and 5 both read with AutoTokenizer."""
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **_options()}
    write_json(folder / "tokenizer_config.json", config)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """A file that people read, too."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def build_encoder(vocabulary: int, width: int = 64) -> T5EncoderModel:
    """An untrained T5 encoder of two layers and four heads."""
    return T5EncoderModel(
        T5Config(
            vocab_size=vocabulary,
            d_model=width,
            d_kv=16,
            d_ff=2 * width,
            num_layers=2,
            num_decoder_layers=0,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            use_cache=False,
        )
    )


def tokenize(
    tokenizer: PreTrainedTokenizerFast, texts: list[str], length: int = 8
) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices and mask [B, length], padded as the pipeline pads."""
    tokens = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return tokens.input_ids, tokens.attention_mask


def build_clip_tokenizer() -> CLIPTokenizer:
    """The tokenizer that `save_clip_tokenizer` writes."""
    with TemporaryDirectory() as folder:
        save_clip_tokenizer(Path(folder))
        return CLIPTokenizer.from_pretrained(folder)


def save_clip_tokenizer(folder: Path) -> None:
    """vocab.json, merges.txt and what goes with them, as CLIP's releases have them.

    Byte pairs are learned from the captions of stills until every word is one token; other words fall into letters.
    """
    words = sorted({word for text in world.captions(motions=world.PLACES) for word in text.split()})
    spelled = {word: [*word[:-1], f"{word[-1]}</w>"] for word in words}
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for parts in spelled.values() for pair in pairwise(parts)):
        pair = min(pairs, key=lambda each: (-pairs[each], each))
        merges.append(pair)
        spelled = {word: _merged(parts, pair) for word, parts in spelled.items()}
    tokens = [*ascii_lowercase, *(f"{letter}</w>" for letter in ascii_lowercase), *map("".join, merges), *CLIP_ENDS]
    start, end = CLIP_ENDS
    special = {"bos_token": start, "eos_token": end, "pad_token": end, "unk_token": end}
    options = {"model_max_length": CLIP_LENGTH, "tokenizer_class": "CLIPTokenizer", "do_lower_case": True, **special}
    write_json(folder / "vocab.json", {token: index for index, token in enumerate(tokens)})
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges), ""]), encoding="utf-8")
    write_json(folder / "special_tokens_map.json", special)
    write_json(folder / "tokenizer_config.json", options)


def _merged(parts: list[str], pair: tuple[str, str]) -> list[str]:
    found: list[str] = []
    for part in parts:
        if found and (found[-1], part) == pair:
            found[-1] += part
        else:
            found.append(part)
    return found


def build_clip_encoder(vocabulary: int, width: int) -> CLIPTextModelWithProjection:
    """An untrained CLIP text encoder of two layers, heads of 16 channels, whose projection keeps the width."""
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=2 * width,
            projection_dim=width,
            num_hidden_layers=2,
            num_attention_heads=width // 16,
            max_position_embeddings=CLIP_LENGTH,
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
        )
    )
