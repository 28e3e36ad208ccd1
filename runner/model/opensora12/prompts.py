"""What a prompt of Open-Sora 1.2 may hold besides words: scores, parts for the loops, JSON. Needs no torch.

    |0| a calm sea |1| a stormy sea {"reference_path": "sea.png", "mask_strategy": "0"}

The order is that of the release: JSON off, parts apart, a score to each part, cleaning, parts together again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import NamedTuple

from ..caption import clean_caption

JSON_KEYS = ("reference_path", "mask_strategy")
_PART = re.compile(r"\|(\d+)\|")


def append_score(
    prompt: str, aes: float | None = None, flow: float | None = None, camera_motion: str | None = None
) -> str:
    """The prompt with the scores that the model was trained to read, each unless the prompt has one already.

    aes: aesthetic score, 4 to 7 in training. flow: motion score, about 0 to 20. camera_motion: "pan left" ...
    """
    if aes is not None and "aesthetic score:" not in prompt:
        prompt = f"{prompt} aesthetic score: {aes:.1f}."
    if flow is not None and "motion score:" not in prompt:
        prompt = f"{prompt} motion score: {flow:.1f}."
    if camera_motion is not None and "camera motion:" not in prompt:
        prompt = f"{prompt} camera motion: {camera_motion}."
    return prompt


def text_preprocessing(prompt: str, clean: bool = True) -> str:
    """The prompt as the training captions were cleaned, or else in lower case without outer white space."""
    return clean_caption(prompt, ideographs=False) if clean else prompt.lower().strip()


def split_prompt(prompt: str) -> tuple[list[str], list[int] | None]:
    """The parts of "|0|...|3|..." and the loop that each begins with; the whole prompt and None if it has none.

    Raises ValueError unless the parts begin with |0| and count upward.
    """
    first = _PART.search(prompt)
    if first is None:
        return [prompt], None
    pieces = _PART.split(prompt)
    loops, parts = [int(number) for number in pieces[1::2]], [text.strip() for text in pieces[2::2]]
    if pieces[0].strip() or loops[0] != 0 or any(b <= a for a, b in zip(loops, loops[1:], strict=False)):
        raise ValueError(f"prompt {prompt!r}: parts must begin with |0| and count upward, as in |0| ... |1| ...")
    return parts, loops


def merge_prompt(parts: Sequence[str], loops: Sequence[int] | None) -> str:
    """The prompt that `split_prompt` takes apart into these."""
    if loops is None:
        return parts[0]
    return "".join(f"|{loop}|{part}" for loop, part in zip(loops, parts, strict=True))


def prompt_of_loop(prompt: str, loop: int) -> str:
    """What a prompt says to loop 0, 1 ...: its part with the largest number that is not beyond it."""
    parts, loops = split_prompt(prompt)
    return parts[0] if loops is None else parts[sum(first <= loop for first in loops) - 1]


class SplitMerge(NamedTuple):
    """A prompt taken apart and put together again."""

    segments: list[str]
    loop_idx: list[int] | None
    merged: str
    per_loop: list[str]


def split_merge(prompt: str, loops: int = 5) -> SplitMerge:
    """The parts of a prompt, the loops that they begin with, the prompt made of them, and what each loop is told."""
    parts, first = split_prompt(prompt)
    merged = merge_prompt(parts, first)
    return SplitMerge(parts, first, merged, [prompt_of_loop(merged, loop) for loop in range(loops)])


def prepare_prompt(
    prompt: str,
    aes: float | None = None,
    flow: float | None = None,
    camera_motion: str | None = None,
    clean: bool = True,
) -> str:
    """A prompt without JSON as the text encoder gets it: scores and cleaning for each part."""
    parts, loops = split_prompt(prompt)
    return merge_prompt(
        [text_preprocessing(append_score(part, aes, flow, camera_motion), clean) for part in parts], loops
    )


def extract_json(prompts: str | Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Prompts without the JSON at their ends, and what that says: reference paths and mask strategies ("" if nothing).

    Raises ValueError on JSON that does not parse, is no object, or has keys that mean nothing.
    """
    texts: list[str] = []
    found: dict[str, list[str]] = {key: [] for key in JSON_KEYS}
    for prompt in [prompts] if isinstance(prompts, str) else prompts:
        text, brace, rest = prompt.partition("{")
        said = _object(prompt, brace + rest) if brace else {}
        texts.append(text)
        for key in JSON_KEYS:
            found[key].append(said.get(key, ""))
    return texts, found["reference_path"], found["mask_strategy"]


def _object(prompt: str, text: str) -> dict[str, str]:
    try:
        said = json.loads(text)
    except ValueError as error:
        raise ValueError(f"prompt {prompt!r}: what begins with {{ is no JSON: {error}") from error
    strange = [key for key, value in said.items() if key not in JSON_KEYS or not isinstance(value, str)]
    if strange:
        raise ValueError(
            f"prompt {prompt!r}: {', '.join(strange)}: its JSON may hold texts under {' and '.join(JSON_KEYS)}"
        )
    return said


def save_path(
    save_dir: str,
    sample_name: str | None = None,
    sample_idx: int = 0,
    prompt: str = "",
    prompt_as_path: bool = False,
    num_sample: int = 1,
    k: int | None = None,
) -> str:
    """Where the release's script puts clip `k` of a prompt, without a suffix: its files keep their names with us."""
    name = prompt if prompt_as_path else f"{sample_name or 'sample'}_{sample_idx:04d}"
    return f"{save_dir}/{name}" + (f"-{k}" if num_sample != 1 else "")
