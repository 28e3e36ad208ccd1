"""The small text encoder: a word tokenizer with T5's special tokens, and a two-layer T5."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from runner.embedded import world

SPECIAL = ("<pad>", "</s>", "<unk>")  # with T5's indices


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
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


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
