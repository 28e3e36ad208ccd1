"""What a result is worth: figures of a clip against the float reference of the same prompt and seed."""

from runner.metrics.compare import Clip, compare
from runner.metrics.paired import PairedInterval, paired_interval
from runner.metrics.video import change, flicker, psnr, relative_error, ssim

__all__ = [
    "Clip",
    "PairedInterval",
    "change",
    "compare",
    "flicker",
    "paired_interval",
    "psnr",
    "relative_error",
    "ssim",
]
