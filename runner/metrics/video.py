"""Full-reference figures of video clips.
 A clip is uint8 [T, H, W, C], a torch tensor or anything `torch.as_tensor` takes (a numpy array). Every function goes
frame by frame, so that a 93-frame 720p pair costs a few frames of memory, not a few clips.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

PEAK = 255.0
SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
SSIM_C1 = (0.01 * PEAK) ** 2
SSIM_C2 = (0.03 * PEAK) ** 2


def psnr(a: Any, b: Any) -> float:
    """Peak signal-to-noise ratio of two clips in dB, from the mean squared error over the whole clip; `inf` if they
    are equal.

    10 log10(255^2 / MSE). The error is pooled before the logarithm, so one broken frame is not averaged away by
    perfect ones.
    """
    squared, count = 0.0, 0
    for x, y in _frame_pairs(a, b):
        squared += float((x - y).square().sum())
        count += x.numel()
    return math.inf if squared == 0 else 10 * math.log10(PEAK**2 * count / squared)


def ssim(a: Any, b: Any) -> float:
    """Structural similarity of two clips: the mean over frames (and channels) of the single-scale index, at most 1.

    Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment: from error visibility to structural similarity"
    (2004), equation 13, with the paper's constants: an 11x11 Gaussian window of sigma 1.5, K1 = 0.01, K2 = 0.03,
    population (co)variances. Only windows that lie wholly inside the frame count. Raises ValueError for frames
    smaller than the window.
    """
    values = [_ssim_frame(x, y) for x, y in _frame_pairs(a, b)]
    return math.fsum(values) / len(values)


def flicker(reference: Any, other: Any) -> float:
    """How much the frame-to-frame change of two clips differs, in 8-bit levels: mean |(a[t+1] - a[t]) - (b[t+1] -
    b[t])|.

    0 when the clips differ by a constant image; motion that both clips share does not count. 0.0 for single frames,
    where nothing changes. `change` of the reference is the scale to read it against.
    """
    total, count, before = 0.0, 0, None
    for x, y in _frame_pairs(reference, other):
        difference = x - y
        if before is not None:
            total += float((difference - before).abs().sum())
            count += difference.numel()
        before = difference
    return total / count if count else 0.0


def change(frames: Any) -> float:
    """The frame-to-frame change of one clip, in 8-bit levels: mean |f[t+1] - f[t]|; 0.0 for a single frame."""
    clip = _clip(frames)
    if len(clip) == 1:
        return 0.0
    steps = [(late.double() - early.double()).abs().mean() for early, late in zip(clip[:-1], clip[1:], strict=True)]
    return float(torch.stack(steps).mean())


def relative_error(a: Any, b: Any) -> float:
    """|a - b| / |b| in the Euclidean norm, formed in float64, for tensors of any equal shape (latents).

    0.0 where both are zero, `inf` where only `b` is.
    """
    x, y = torch.as_tensor(a), torch.as_tensor(b)
    if x.shape != y.shape:
        raise ValueError(f"tensors of different shapes cannot be compared: {list(x.shape)} and {list(y.shape)}")
    x, y = x.double(), y.double()
    error, size = float((x - y).norm()), float(y.norm())
    if size == 0:
        return 0.0 if error == 0 else math.inf
    return error / size


def _clip(frames: Any) -> Tensor:
    clip = torch.as_tensor(frames)
    if clip.dtype != torch.uint8 or clip.ndim != 4 or clip.numel() == 0:
        raise ValueError(f"a clip is uint8 [T, H, W, C] and not empty; this one is {clip.dtype} {list(clip.shape)}")
    return clip


def _frame_pairs(a: Any, b: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """The frames of two clips in step, float64 [H, W, C] each."""
    x, y = _clip(a), _clip(b)
    if x.shape != y.shape:
        raise ValueError(f"clips of different shapes cannot be compared: {list(x.shape)} and {list(y.shape)}")
    for p, q in zip(x, y, strict=True):
        yield p.double(), q.double()


def _ssim_frame(x: Tensor, y: Tensor) -> float:
    height, width, _ = x.shape
    if min(height, width) < SSIM_WINDOW:
        raise ValueError(f"SSIM looks through a window of {SSIM_WINDOW}x{SSIM_WINDOW}; the frame is {height}x{width}")
    x, y = x.permute(2, 0, 1), y.permute(2, 0, 1)
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = _blur(torch.stack([x, y, x * x, y * y, x * y]))
    luminance = (2 * mean_x * mean_y + SSIM_C1) / (mean_x**2 + mean_y**2 + SSIM_C1)
    variances = (mean_xx - mean_x**2) + (mean_yy - mean_y**2)
    contrast_structure = (2 * (mean_xy - mean_x * mean_y) + SSIM_C2) / (variances + SSIM_C2)
    return float((luminance * contrast_structure).mean())


def _blur(planes: Tensor) -> Tensor:
    """A Gaussian-weighted mean around each pixel, without padding: [..., H, W] -> [..., H - 10, W - 10].

    Shifted sums, down and then across: in float64 on a CPU they are twenty times faster than `conv2d`.
    """
    weights = [math.exp(-((offset - SSIM_WINDOW // 2) ** 2) / (2 * SSIM_SIGMA**2)) for offset in range(SSIM_WINDOW)]
    for dim in (-2, -1):
        size = planes.shape[dim] - SSIM_WINDOW + 1
        total = torch.zeros_like(planes.narrow(dim, 0, size))
        for offset, weight in enumerate(weights):
            total.add_(planes.narrow(dim, offset, size), alpha=weight / math.fsum(weights))
        planes = total
    return planes
