"""metrics.json: every clip of a run against the float reference of the same prompt and seed."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from runner.metrics.paired import paired_interval
from runner.metrics.video import change, flicker, psnr, relative_error, ssim

Score = Callable[[Any, str], float]
Distance = Callable[[Any, Any], float]


class Clip(NamedTuple):
    """What a run made of one prompt: frames uint8 [T, H, W, 3], and the latents that they were decoded from, if
    kept."""

    frames: Any
    latents: Any = None


def compare(
    references: Iterable[Clip],
    clips: Iterable[Clip],
    prompts: Sequence[Mapping[str, Any]],
    judge: Score | None = None,
    distance: Distance | None = None,
    clip_score: Score | None = None,
) -> dict[str, Any]:
    """The `prompts` and `summary` of metrics.json, as plain JSON values.

    `references` (float) and `clips` may be generators: one pair is held at a time. `prompts` has a mapping with
    "index" and "prompt" (the caption as the user wrote it) for each. `judge` and `clip_score` take (frames, caption);
    `distance` (LPIPS) takes (reference frames, frames). Raises ValueError unless there are as many references and
    clips as prompts.

    JSON has no infinity: "psnr_db" is null where the clips are identical, and "latent_error" where the reference is
    zero; a key that was not measured is absent. Flicker and change are in 8-bit levels.
    """
    rows = []
    for entry, reference, clip in zip(prompts, references, clips, strict=True):
        row = {"index": entry["index"], "prompt": entry["prompt"], **_figures(reference, clip)}
        if judge is not None:
            row |= _both("judge", judge, reference, clip, entry["prompt"])
        if clip_score is not None:
            row |= _both("clip", clip_score, reference, clip, entry["prompt"])
        if distance is not None:
            row["lpips"] = distance(reference.frames, clip.frames)
        rows.append(row)
    summary = summarize(rows)
    return {"prompts": [{key: _plain(value) for key, value in row.items()} for row in rows], "summary": summary}


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians, and the percentile of the bad end (5th where more is better, 95th where less is), over the rows of all
    prompts."""
    summary: dict[str, Any] = {}
    for name, tail in (("psnr_db", 5), ("ssim", 5), ("latent_error", 95), ("flicker", 95), ("lpips", 95)):
        if values := [row[name] for row in rows if name in row]:
            summary[name] = {"median": _plain(quantile(values, 0.5)), f"p{tail}": _plain(quantile(values, tail / 100))}
    for name in ("change", "judge", "clip"):
        if values := [(row[f"{name}_float"], row[f"{name}_quantized"]) for row in rows if f"{name}_float" in row]:
            float_scores, quantized_scores = zip(*values, strict=True)
            interval = paired_interval(quantized_scores, float_scores)
            summary[name] = {
                "float": math.fsum(float_scores) / interval.n,
                "quantized": math.fsum(quantized_scores) / interval.n,
                **interval._asdict(),
            }
    return summary


def quantile(values: Sequence[float], q: float) -> float:
    """The q-quantile by linear interpolation between order statistics, like numpy's, but with infinities in their
    place."""
    ordered = sorted(values)
    position = q * (len(ordered) - 1)
    below, above = ordered[math.floor(position)], ordered[math.ceil(position)]
    if below == above or position == math.floor(position):
        return below
    return below + (above - below) * (position - math.floor(position))


def _figures(reference: Clip, clip: Clip) -> dict[str, float]:
    figures = {"psnr_db": psnr(reference.frames, clip.frames), "ssim": ssim(reference.frames, clip.frames)}
    if reference.latents is not None and clip.latents is not None:
        figures["latent_error"] = relative_error(clip.latents, reference.latents)
    return figures | {
        "flicker": flicker(reference.frames, clip.frames),
        "change_float": change(reference.frames),
        "change_quantized": change(clip.frames),
    }


def _both(name: str, score: Score, reference: Clip, clip: Clip, caption: str) -> dict[str, float]:
    return {
        f"{name}_float": float(score(reference.frames, caption)),
        f"{name}_quantized": float(score(clip.frames, caption)),
    }


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
