"""What a page says in figures: the verdict, the ledger of what was predicted and measured, the worst layers.

Only what was measured is claimed, and what cannot be compared fairly gets no ratio.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runner.config import wording
from runner.desk.report.read import Clip, Layer, Run
from runner.desk.report.values import number, pick

WORST_LAYERS = 12


@dataclass(frozen=True)
class Value:
    """A figure and what stands small below it: a spread, a percentile."""

    text: str
    note: str = ""


@dataclass(frozen=True)
class Row:
    """A line of the ledger: a quantity, its value in float and in the other arm, and what changed."""

    label: str
    note: str
    reference: Value
    result: Value
    change: Value


@dataclass(frozen=True)
class Group:
    """Rows under one heading of the ledger."""

    title: str
    rows: Sequence[Row]


NOTHING = Value(wording.UNKNOWN)
BLANK = Value("")  # where a value would have no meaning, not where it is missing


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
    parts = [part for part in (_steps_part(run), _speed_part(run), _quality_part(run)) if part]
    return "; ".join(parts) + "." if parts else f"Done: {run.arm}. Nothing was compared with float."


def _steps_part(run: Run) -> str:
    steps, recorded = number(run.config, "sampler", "num_sampling_steps"), number(run.config, "recording", "steps")
    if not run.schedule or steps is None or recorded is None:
        return ""
    return f"{steps:.0f} steps in place of {recorded:.0f}"


def _speed_part(run: Run) -> str:
    reuse = number(run.measured, "cache", "speedup")
    loop = f"{'R' if run.scheme is None else 'r'}euse makes the denoising loop {wording.times(reuse)} as fast"
    ratio = number(run.measured, "step_seconds", "ratio")
    if ratio is None:
        return "" if reuse is None else loop
    also = "" if reuse is None else f" and {loop}"
    low, high = _bounds(run.measured["step_seconds"]["ratio"]) or (ratio, ratio)
    model = run.scheme
    if low <= 1 <= high:
        return f"A {model} step takes about as long as a float one{also}"
    if ratio > 1:
        return f"A {model} step is {wording.times(ratio)} as fast as a float one{also}"
    return f"A {model} step takes {wording.times(1 / ratio)} as long as a float one{also}"


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
    if (int8 := number(run.ledger, "int8_share")) is not None:
        yield "of linear FLOPs in int8", Value(wording.share(int8))
    if (ratio := number(run.measured, "step_seconds", "ratio")) is not None:
        yield "speed of a step, float = 1", Value(wording.times(ratio), _limits(run.measured["step_seconds"]["ratio"]))
    if (reuse := number(run.measured, "cache", "speedup")) is not None:
        yield "speed of the loop, all computed = 1", Value(wording.times(reuse), _limits(run.measured["cache"]))
    if run.arm is not None and "psnr_db" in run.summary:
        yield "median PSNR to float", Value(_psnr(run.summary["psnr_db"], "median"))
    judge = run.summary.get("judge")
    if run.arm is not None and number(judge, "difference") is not None:
        yield "judge, points to float", Value(wording.points(number(judge, "difference")), _interval(judge))
    if run.float_bytes and run.export_bytes:
        yield "size of the weights, float = 1", Value(wording.times(run.export_bytes / run.float_bytes))


def ledger(run: Run) -> Iterator[Group]:
    """What was predicted beside what was measured, for every configuration the same rows in the same order."""
    yield Group("Predicted: arithmetic and size", list(_predicted(run)))
    yield Group("Measured: speed and memory", list(_measured(run)))
    yield Group("Measured: quality", list(_quality(run)))


def _predicted(run: Run) -> Iterator[Row]:
    if (int8 := number(run.ledger, "int8_flops")) is not None:
        matmuls = number(run.ledger, "int8_matmuls")
        note = f"{wording.count(matmuls)} int8 matrix products" if matmuls is not None else ""
        total = Value(wording.flops(number(run.ledger, "linear_flops")), "none in int8")
        done = Value(f"{wording.flops(int8)} in int8", note)
        share = Value(wording.share(number(run.ledger, "int8_share")))
        yield Row("FLOPs of linear layers", "one call of the transformer", total, done, share)
    if left := computed_share(run):
        whole = Value(wording.share(1.0), f"{wording.count(number(run.cache, 'blocks'))} blocks a step")
        change = Value(f"{wording.times(1 / left)} as fast", "if blocks were all")
        yield Row("Blocks computed", "over all steps", whole, Value(wording.share(left)), change)
    if run.float_bytes and run.export_bytes:
        before, after = Value(wording.size(run.float_bytes)), Value(wording.size(run.export_bytes))
        change = Value(wording.times(run.export_bytes / run.float_bytes))
        yield Row("Transformer weights", "on disk", before, after, change)


def computed_share(run: Run) -> float | None:
    """The share of all blocks in all steps that the cache leaves to compute; None without one."""
    ranges, blocks = run.cache.get("ranges"), number(run.cache, "blocks")
    if not isinstance(ranges, list) or not ranges or not blocks:
        return None
    skipped = sum(reused[1] - reused[0] for reused in ranges if reused)
    return 1 - skipped / (len(ranges) * blocks)


def _measured(run: Run) -> Iterator[Row]:
    """Steps are timed in turn, so their ratio is measured; whole clips are not, so theirs is left to the reader."""
    generation, recorded = pick(run.measured, "generation"), pick(run.recorded, "generation")
    if number(run.measured, "step_seconds", "float") is not None:
        arms, ratio = run.measured["step_seconds"], pick(run.measured, "step_seconds", "ratio")
        before, after = _timing(arms["float"]), _timing(arms.get("quantized"))
        change = Value(f"{wording.times(number(ratio))} as fast", _limits(ratio)) if number(ratio) else NOTHING
        yield Row("Denoising step", "the two in turn", before, after, change)
    elif run.arm is None and number(generation, "step_seconds") is not None:
        yield Row("Denoising step", "", _timing(pick(generation, "step_seconds")), BLANK, BLANK)
    if (reuse := number(run.measured, "cache", "speedup")) is not None:
        timed = run.measured["cache"]
        before = Value(wording.seconds(number(timed, "full_seconds")), "a step that computes all")
        after = Value(wording.seconds(number(timed, "reuse_seconds")), "a step that reuses")
        note = f"medians of {wording.count(number(timed, 'steps_timed'))} of its steps"
        yield Row("Denoising loop", note, before, after, Value(f"{wording.times(reuse)} as fast", _limits(timed)))
    clip, memory = _timing(pick(generation, "clip_seconds")), number(run.measured, "peak_memory_bytes")
    if run.arm is None:
        if number(generation, "clip_seconds") is not None:
            yield Row("Clip, end to end", "text to frames", clip, BLANK, BLANK)
        if memory is not None:
            yield Row("Peak memory", "", Value(wording.size(memory)), BLANK, BLANK)
        return
    if number(generation, "clip_seconds") is not None:
        before = Value(_timing(pick(recorded, "clip_seconds")).text, "while recording")
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


def _timing(spread: Any) -> Value:
    low, high, n = (number(spread, key) for key in ("p25", "p75", "n"))
    between = f"{wording.seconds(low)} to {wording.seconds(high)}" if low is not None and high is not None else ""
    return Value(wording.seconds(number(spread)), ", ".join(filter(None, (between, f"n = {n:.0f}" if n else ""))))


def _bounds(spread: Any) -> tuple[float, float] | None:
    """An interval if there is one, else the quartiles."""
    for ends in (("low", "high"), ("p25", "p75")):
        low, high = (number(spread, end) for end in ends)
        if low is not None and high is not None:
            return low, high
    return None


def _limits(ratio: Any) -> str:
    bounds = _bounds(ratio)
    return f"{wording.times(bounds[0])} to {wording.times(bounds[1])}" if bounds else ""


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


def worst_layers(run: Run) -> list[tuple[Layer, float]]:
    """The quantized layers of lowest signal-to-noise ratio, each with its bar in percent of the best layer's."""
    noisy = [(layer, layer.snr_db) for layer in run.layers if layer.snr_db is not None and math.isfinite(layer.snr_db)]
    noisy.sort(key=lambda pair: pair[1])
    longest = max([1.0, *(snr for _, snr in noisy)])
    return [(layer, max(0.0, 100 * snr / longest)) for layer, snr in noisy[:WORST_LAYERS]]
