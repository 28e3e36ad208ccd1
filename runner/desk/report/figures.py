"""The figures that runs are compared by: one row a figure, for the page, the table, CSV and JSON alike."""

from __future__ import annotations

import math
from collections.abc import Callable

from runner import technique
from runner.config import wording
from runner.page.pieces import Figure, of_changed
from runner.page.run import Run
from runner.page.values import number


def _step(run: Run) -> float | None:
    """Of the changed model where both were timed in turn, else of the model as it is."""
    return _first(
        number(of_changed(run.measured.get("step_seconds"))), number(run.measured, "generation", "step_seconds")
    )


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


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


FIGURES: tuple[Figure, ...] = (
    Figure("seconds", "time of the run", lambda run: run.seconds, wording.seconds),
    Figure("speed", "speed of a step, float = 1", lambda run: number(run.measured, "step_seconds", "ratio"),
           wording.times, True, cost=1),
    Figure("step_seconds", "step", _step, wording.seconds, False, cost=2),
    Figure("clip_seconds", "clip", lambda run: number(run.measured, "generation", "clip_seconds"),
           wording.seconds, False, cost=3),
    Figure("peak_memory_bytes", "peak memory", lambda run: number(run.measured, "peak_memory_bytes"),
           wording.size, False),
    *(figure for _, rows in technique.rows() for figure in rows.figures),
    Figure("psnr_db", "PSNR to float", _psnr, wording.decibel, True, quality=0),
    Figure("ssim", "SSIM to float", _compared("ssim"), wording.digits, True, quality=2),
    Figure("step_error", "error of one step", lambda run: number(run.measured, "relative_error"),
           wording.digits, False),
    Figure("latent_error", "error of the latents", _compared("latent_error"), wording.digits, False, quality=1),
    Figure("flicker", "flicker", _compared("flicker"), wording.digits, False),
    Figure("lpips", "LPIPS to float", _compared("lpips"), wording.digits, False, quality=5),
    Figure("judge", "judge", _scored("judge"), wording.score, True, quality=3),
    Figure("clip", "CLIP score", _scored("clip"), lambda value: wording.score(value, 100), True, quality=4),
)  # fmt: skip
