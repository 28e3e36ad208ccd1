"""What a page says in figures: the verdict, the ledger of what was predicted and measured, the worst layers.

Only what was measured is claimed, and what cannot be compared fairly gets no ratio.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runner import technique
from runner.config import wording
from runner.page.pieces import BLANK, NOTHING, Row, Value, bounds, limits, of_changed, of_reference, timing
from runner.page.run import Clip, Run
from runner.page.values import number, pick


@dataclass(frozen=True)
class Group:
    """Rows under one heading of the ledger."""

    title: str
    rows: Sequence[Row]


def verdict(run: Run) -> str:
    """The run in one sentence; what was not measured is not claimed."""
    if run.state == "failed":
        where = f" in {run.failed_stage}" if run.failed_stage else ""
        return f"Failed{where}: {(run.error or 'no error was recorded').splitlines()[0]}"
    if run.state == "running":
        running = next((stage.name for stage in run.stages if stage.state == "running"), None)
        return f"Under way: {running} is running." if running else "Under way."
    if run.state != "done":
        return "Planned, not started."
    if run.arm is None:
        clips = f"{len(run.clips)} clip{'' if len(run.clips) == 1 else 's'}"
        return f"A float run: {clips} from the model as it is, nothing quantized."
    # How long a step takes is said where the first technique stands that changes it.
    each = [rows for _, rows in technique.rows()]
    first = next((place for place, rows in enumerate(each) if rows.changes_call), len(each))
    claims = [rows.claim(run) for rows in each]
    said = "; ".join(filter(None, (*claims[:first], _speed_part(run), *claims[first:], _quality_part(run))))
    return f"{said[0].upper()}{said[1:]}." if said else f"Done: {run.arm}. Nothing was compared with float."


def _speed_part(run: Run) -> str:
    ratio = number(run.measured, "step_seconds", "ratio")
    if ratio is None or run.changes is None:
        return ""
    low, high = bounds(run.measured["step_seconds"]["ratio"]) or (ratio, ratio)
    if low <= 1 <= high:
        return f"a {run.changes} step takes about as long as a float one"
    if ratio > 1:
        return f"a {run.changes} step is {wording.times(ratio)} as fast as a float one"
    return f"a {run.changes} step takes {wording.times(1 / ratio)} as long as a float one"


def _quality_part(run: Run) -> str:
    parts = []
    if "psnr_db" in run.summary:
        parts.append(f"{_psnr(run.summary['psnr_db'], 'median')} median PSNR")
    judged = number(run.summary, "judge", "difference")
    if judged is not None:
        parts.append(f"{wording.points(judged)} points by the judge")
    return ", ".join(parts)


def highlights(run: Run) -> Iterator[tuple[str, Value]]:
    """The few figures at the head of the page: (what, value)."""
    if (ratio := number(run.measured, "step_seconds", "ratio")) is not None:
        yield "speed of a step, float = 1", Value(wording.times(ratio), limits(run.measured["step_seconds"]["ratio"]))
    for _, rows in technique.rows():
        yield from rows.highlights(run)
    if run.arm is not None and "psnr_db" in run.summary:
        yield "median PSNR to float", Value(_psnr(run.summary["psnr_db"], "median"))
    judge = run.summary.get("judge")
    if run.arm is not None and number(judge, "difference") is not None:
        yield "judge, points to float", Value(wording.points(number(judge, "difference")), _interval(judge))


def ledger(run: Run) -> Iterator[Group]:
    """What was predicted beside what was measured, for every configuration the same rows in the same order."""
    yield Group("Predicted: arithmetic and size", [row for _, rows in technique.rows() for row in rows.predicted(run)])
    yield Group("Measured: speed and memory", list(_measured(run)))
    yield Group("Measured: quality", list(_quality(run)))


def _measured(run: Run) -> Iterator[Row]:
    """Steps are timed in turn, so their ratio is measured; whole clips are not, so theirs is left to the reader."""
    generation, recorded = pick(run.measured, "generation"), pick(run.recorded, "generation")
    arms = run.measured.get("step_seconds")
    if (reference := of_reference(arms)) is not None:
        ratio = pick(arms, "ratio")
        before, after = timing(reference), timing(of_changed(arms))
        change = Value(f"{wording.times(number(ratio))} as fast", limits(ratio)) if number(ratio) else NOTHING
        yield Row("Denoising step", "the two in turn", before, after, change)
    elif run.arm is None and number(generation, "step_seconds") is not None:
        yield Row("Denoising step", "", timing(pick(generation, "step_seconds")), BLANK, BLANK)
    for _, rows in technique.rows():
        yield from rows.measured(run)
    clip, memory = timing(pick(generation, "clip_seconds")), number(run.measured, "peak_memory_bytes")
    if run.arm is None:
        if number(generation, "clip_seconds") is not None:
            yield Row("Clip, end to end", "text to frames", clip, BLANK, BLANK)
        if memory is not None:
            yield Row("Peak memory", "", Value(wording.size(memory)), BLANK, BLANK)
        return
    if number(generation, "clip_seconds") is not None:
        before = Value(timing(pick(recorded, "clip_seconds")).text, "while recording")
        yield Row("Clip, end to end", "text to frames", before, clip, BLANK)
    if memory is not None:
        before = Value(wording.size(number(run.recorded, "peak_memory_bytes")), "while recording")
        yield Row("Peak memory", "", before, Value(wording.size(memory)), BLANK)


def _quality(run: Run) -> Iterator[Row]:
    """Distances to the float clip of the same prompt and seed, then scores of each arm on its own."""
    if run.arm is not None:
        yield from _distances(run)
    for key, label, best in (("judge", "Judge", 1), ("clip", "CLIP score", 100)):
        score = run.summary.get(key)
        if (difference := number(score, "difference")) is not None:
            note = f"mean of {wording.count(number(score, 'n'))} clips, 0 to 100"
            before, after = (Value(wording.score(number(score, arm), best)) for arm in ("float", "quantized"))
            change = Value(f"{wording.points(difference, best)} points", _interval(score, best))
            yield Row(label, note, before, *((after, change) if run.arm else (BLANK, BLANK)))


def _distances(run: Run) -> Iterator[Row]:
    summary = run.summary
    if (error := number(run.measured, "relative_error")) is not None:
        yield Row("Error of one step", "relative, same input", BLANK, Value(wording.digits(error)), BLANK)
    if "psnr_db" in summary:
        tail = f"5% of clips below {_psnr(summary['psnr_db'], 'p5')}"
        yield Row("PSNR", "median over clips", BLANK, Value(_psnr(summary["psnr_db"], "median"), tail), BLANK)
    rows = (
        ("ssim", "SSIM", "", "p5", "below"),
        ("latent_error", "Error of the latents", "relative", "p95", "above"),
        ("flicker", "Flicker", "of 255 levels", "p95", "above"),
        ("lpips", "LPIPS", "", "p95", "above"),
    )
    for key, label, unit, tail, side in rows:
        if (median := number(summary, key, "median")) is not None:
            worst = number(summary, key, tail)
            note = f"5% of clips {side} {wording.digits(worst)}" if worst is not None else ""
            reference = BLANK
            if key == "flicker" and (own := number(summary, "change", "float")) is not None:
                reference = Value(wording.digits(own), "change from frame to frame")
            about = ", ".join(filter(None, (unit, "median over clips")))
            yield Row(label, about, reference, Value(wording.digits(median), note), BLANK)


def _interval(score: Any, unit: float = 1) -> str:
    """The paired 95% interval in points; empty where one clip is all there is."""
    low, high = number(score, "low"), number(score, "high")
    return (
        f"[{wording.points(low, unit)}, {wording.points(high, unit)}]" if low is not None and high is not None else ""
    )


def _psnr(figures: Mapping[str, Any], key: str) -> str:
    """JSON null stands for infinity here: clips without any difference."""
    if key in figures and figures[key] is None:
        return "∞"
    return wording.decibel(number(figures, key))


def clip_figures(run: Run, clip: Clip) -> list[tuple[str, str]]:
    """What stands below a pair of clips: (name, value)."""
    figures = []
    if run.arm is not None and "psnr_db" in clip.figures:
        identical = clip.figures["psnr_db"] is None
        figures.append(("PSNR", "identical" if identical else wording.decibel(number(clip.figures, "psnr_db"))))
    if run.arm is not None and (ssim := number(clip.figures, "ssim")) is not None:
        figures.append(("SSIM", wording.digits(ssim)))
    arms = ("float", "quantized") if run.arm is not None else ("float",)
    scores = [number(clip.figures, f"judge_{arm}") for arm in arms]
    if None not in scores:
        figures.append(("judge", " → ".join(f"{100 * (score or 0):.0f}" for score in scores)))
    return figures
