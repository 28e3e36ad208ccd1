"""Which latent frames are given, which generated, and how much: the mask strategy of Open-Sora 1.2.

    "loop,reference,reference start,target start,length,edit ratio; ..."    what is left out: 0,0,0,0,1,0

A frame's mask is 0 where it is kept as given, 1 where it is generated, and between for an edit of so much of the noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

FIELDS: dict[str, type] = {
    "loop": int,
    "reference": int,
    "reference_start": int,
    "target_start": int,
    "length": int,
    "edit_ratio": float,
}
DEFAULTS: tuple[float, ...] = (0, 0, 0, 0, 1, 0.0)
ALIGN = 5  # latent frames of a chunk; starts are moved to chunks' starts


def parse_mask_strategy(strategy: str) -> list[list[Any]]:
    """[[loop, reference, reference start, target start, length, edit ratio], ...] of a strategy; "" is none.

    Raises ValueError, naming the part, if it is not of that form.
    """
    return [_entry(part) for part in strategy.split(";")] if strategy.strip() else []


def _entry(part: str) -> list[Any]:
    values = part.split(",")
    try:
        if len(values) > len(FIELDS):
            raise ValueError(f"it has {len(values)} values")
        entry = [kind(value) for kind, value in zip(FIELDS.values(), values, strict=False)]
    except ValueError as error:
        form = ",".join(FIELDS)
        raise ValueError(f"mask strategy {part.strip()!r} is not of the form {form}: {error}") from error
    entry += DEFAULTS[len(entry) :]
    loop, reference, _, _, length, ratio = entry
    if loop < 0 or reference < 0 or length < 1 or not 0 <= ratio <= 1:
        raise ValueError(
            f"mask strategy {part.strip()!r}: loop and reference are 0 or more, length 1 or more, edit_ratio 0 to 1"
        )
    return entry


def strategy_text(strategy: str | Sequence[Mapping[str, Any]] | None) -> str:
    """A strategy in the released syntax, from that or from a list of mappings with the names of FIELDS.

    Raises ValueError on anything else.
    """
    if strategy is None or isinstance(strategy, str):
        text = strategy or ""
    else:
        for entry in strategy:
            if not isinstance(entry, Mapping) or entry.keys() - FIELDS.keys():
                raise ValueError(f"mask strategy {entry!r}: expected keys among {', '.join(FIELDS)}")
        rows = [
            [entry.get(name, default) for name, default in zip(FIELDS, DEFAULTS, strict=True)] for entry in strategy
        ]
        text = ";".join(",".join(map(str, row)) for row in rows)
    parse_mask_strategy(text)
    return text


def find_nearest_point(value: int, point: int, max_value: int) -> int:
    """The multiple of `point` nearest to `value` whose chunk lies wholly before `max_value`, as the reference rounds.

    A multiple that `value` is already beyond is taken even where its chunk is not whole.
    """
    whole, rest = divmod(value, point)
    if rest > point / 2 and whole < max_value // point - 1:
        whole += 1
    return whole * point


def apply_mask_strategy(
    z: Tensor,
    refs: Sequence[Sequence[Tensor]],
    mask_strategy: Sequence[str] | None,
    loop_i: int,
    align: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Latents [B,C,T,h,w] with the references of this loop in their places, and the mask [B,T] (float32, 0 to 1).

    refs: for each sample its references [C,t,h,w]. Negative starts count from the end. The mask is None without
    strategies; `z` stays as it is. Raises ValueError for an entry that points outside.
    """
    if mask_strategy is None:
        return z, None
    z, mask = z.clone(), z.new_ones(z.shape[0], z.shape[2]).float()
    for sample, strategy in enumerate(mask_strategy):
        for loop, reference, ref_start, start, length, ratio in parse_mask_strategy(strategy):
            if loop != loop_i:
                continue
            if reference >= len(refs[sample]):
                raise ValueError(f"mask strategy {strategy!r} asks for reference {reference} of {len(refs[sample])}")
            ref = refs[sample][reference]
            ref_start = _place(strategy, "reference", ref_start, ref.shape[1], align)
            start = _place(strategy, "target", start, z.shape[2], align)
            length = min(length, z.shape[2] - start, ref.shape[1] - ref_start)
            z[sample, :, start : start + length] = ref[:, ref_start : ref_start + length]
            mask[sample, start : start + length] = ratio
    return z, mask


def _place(strategy: str, what: str, start: int, frames: int, align: int | None) -> int:
    """Where a part starts, from 0, in so many latent frames."""
    place = start + frames if start < 0 else start
    if not 0 <= place < frames:
        raise ValueError(f"mask strategy {strategy!r} starts at {what} frame {start} of {frames} latent frames")
    return find_nearest_point(place, align, frames) if align else place
