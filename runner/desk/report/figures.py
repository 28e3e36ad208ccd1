"""The figures that runs are compared by: one row a figure, for the page, the table, CSV and JSON alike."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from runner.config import wording
from runner.desk.report.read import Run
from runner.desk.report.values import number


@dataclass(frozen=True)
class Figure:
    """What is said of a run in one number: its name in files, its heading, where it is read, how it is shown."""

    key: str
    label: str
    read: Callable[[Run], float | None]
    show: Callable[[float | None], str]
    more_is_better: bool | None = None  # None where neither is


def _step(run: Run) -> float | None:
    """Of the changed model where both were timed in turn, else of the model as it is."""
    return _first(number(run.measured, "step_seconds", "quantized"), number(run.measured, "generation", "step_seconds"))


def _psnr(run: Run) -> float | None:
    """JSON null stands for infinity here: clips without any difference."""
    figures = run.summary.get("psnr_db") if run.arm is not None else None
    if isinstance(figures, dict) and "median" in figures and figures["median"] is None:
        return math.inf
    return number(figures)


def _compared(key: str) -> Callable[[Run], float | None]:
    return lambda run: number(run.summary, key) if run.arm is not None else None


def _scored(key: str) -> Callable[[Run], float | None]:
    return lambda run: number(run.summary, key, "quantized" if run.arm is not None else "float")


def _size(run: Run) -> float | None:
    return run.export_bytes / run.float_bytes if run.float_bytes and run.export_bytes else None


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


FIGURES = (
    Figure("seconds", "time of the run", lambda run: run.seconds, wording.seconds),
    Figure("speed", "speed of a step, float = 1", lambda run: number(run.measured, "step_seconds", "ratio"),
           wording.times, True),
    Figure("loop_speed", "speed of the loop by reuse", lambda run: number(run.measured, "cache", "speedup"),
           wording.times, True),
    Figure("step_seconds", "step", _step, wording.seconds, False),
    Figure("clip_seconds", "clip", lambda run: number(run.measured, "generation", "clip_seconds"),
           wording.seconds, False),
    Figure("peak_memory_bytes", "peak memory", lambda run: number(run.measured, "peak_memory_bytes"),
           wording.size, False),
    Figure("weights", "weights, float = 1", _size, wording.times, False),
    Figure("int8_share", "linear FLOPs in int8", lambda run: number(run.ledger, "int8_share"), wording.share),
    Figure("psnr_db", "PSNR to float", _psnr, wording.decibel, True),
    Figure("ssim", "SSIM to float", _compared("ssim"), wording.digits, True),
    Figure("step_error", "error of one step", lambda run: number(run.measured, "relative_error"),
           wording.digits, False),
    Figure("latent_error", "error of the latents", _compared("latent_error"), wording.digits, False),
    Figure("flicker", "flicker", _compared("flicker"), wording.digits, False),
    Figure("lpips", "LPIPS to float", _compared("lpips"), wording.digits, False),
    Figure("judge", "judge", _scored("judge"), wording.score, True),
    Figure("clip", "CLIP score", _scored("clip"), lambda value: wording.score(value, 100), True),
)  # fmt: skip
