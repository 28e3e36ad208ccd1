import json
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from runner.metrics import Clip, compare, psnr
from runner.metrics.compare import quantile

PROMPTS = [{"index": i, "prompt": f"caption {i}", "seed": 9} for i in range(3)]


def frames(seed: int, noise: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    clip = random.integers(30, 220, (4, 16, 16, 3))
    return (clip + np.random.default_rng(seed + 100).integers(-noise, noise + 1, clip.shape)).astype(np.uint8)


def clips(noise: int) -> list[Clip]:
    return [Clip(frames(i, noise * i), torch.full((1, 4), 1.0 + 0.1 * noise * i)) for i in range(3)]


def test_metrics_of_a_run() -> None:
    result = compare(clips(0), clips(2), PROMPTS, judge=lambda clip, caption: float(caption == "caption 1"))
    rows, summary = result["prompts"], result["summary"]
    assert [row["prompt"] for row in rows] == ["caption 0", "caption 1", "caption 2"]
    assert rows[0]["psnr_db"] is None, "identical clips: JSON has no infinity"
    assert rows[2]["psnr_db"] == psnr(frames(2), frames(2, 4))
    assert rows[1]["latent_error"] == pytest.approx(0.2)
    assert summary["psnr_db"]["median"] == max(rows[1]["psnr_db"], rows[2]["psnr_db"])
    assert summary["ssim"]["median"] == sorted(row["ssim"] for row in rows)[1]
    assert summary["latent_error"] == {"median": pytest.approx(0.2), "p95": pytest.approx(0.38)}
    assert summary["judge"]["n"] == 3 and summary["judge"]["float"] == pytest.approx(1 / 3)
    assert summary["judge"]["difference"] == summary["judge"]["low"] == summary["judge"]["high"] == 0
    assert summary["flicker"]["median"] > 0 and summary["change"]["float"] > 0
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_difference_is_quantized_minus_float() -> None:
    scores = iter([1.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    judge = compare(clips(0), clips(1), PROMPTS, judge=lambda clip, caption: next(scores))["summary"]["judge"]
    assert (judge["float"], judge["quantized"]) == (1.0, pytest.approx(2 / 3))
    assert judge["difference"] == pytest.approx(-1 / 3)
    assert judge["low"] < judge["difference"] < judge["high"]


def test_one_pair_is_held_at_a_time() -> None:
    asked = []

    def stream(name: str) -> Iterator[Clip]:
        for i, clip in enumerate(clips(1)):
            asked.append(f"{name}{i}")
            yield clip

    compare(stream("float"), stream("w8a8"), PROMPTS)
    assert asked == ["float0", "w8a80", "float1", "w8a81", "float2", "w8a82"]


def test_what_was_not_measured_is_absent() -> None:
    result = compare([Clip(c.frames) for c in clips(0)], clips(1), PROMPTS, distance=lambda a, b: 0.25)
    assert not {"latent_error", "judge_float", "clip_float"} & set(result["prompts"][0])
    assert not {"latent_error", "judge", "clip"} & set(result["summary"])
    assert result["summary"]["lpips"] == {"median": 0.25, "p95": 0.25}


@pytest.mark.parametrize(("references", "made"), [(3, 2), (2, 3), (2, 2)])
def test_a_missing_clip_is_an_error(references: int, made: int) -> None:
    with pytest.raises(ValueError, match=r"zip\(\) argument \d is shorter"):
        compare(clips(0)[:references], clips(1)[:made], PROMPTS)


def test_quantile_is_numpys_with_infinities_in_their_place() -> None:
    values = [3.0, 1.0, 7.5, 2.0]
    for q in (0, 0.05, 0.5, 0.95, 1):
        assert quantile(values, q) == pytest.approx(float(np.quantile(values, q)))
    assert quantile([1.0, math.inf, math.inf], 0.5) == math.inf
    assert quantile([1.0, 2.0, math.inf], 0.5) == 2.0
    assert quantile([math.inf], 0.05) == math.inf
