"""A run folder as the desk and the bench leave it, made up: small, with real videos, and no model behind it."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from runner.generation.media import contact_sheet, save_clip

COLORS = {"red": (214, 48, 49), "green": (38, 166, 91), "blue": (41, 98, 214), "yellow": (240, 196, 25)}
MOTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
PROMPTS = [
    "a red circle moving left on a white background",
    "a blue square moving up on a gray background",
    "a yellow triangle moving right on a dark background",
    "a small green square moving down on a white background",
]
STAGES = ("dump", "calibrate", "quantize", "search", "sample")
Json = dict[str, Any]


def draw(prompt: str, frames: int = 9, side: int = 64, noise: int = 0) -> np.ndarray:
    """A clip uint8 [T, side, side, 3] of what the caption says."""
    words = prompt.split()
    color = next(COLORS[word] for word in words if word in COLORS)
    dx, dy = next(MOTIONS[word] for word in words if word in MOTIONS)
    ground = 40 if "dark" in words else 150 if "gray" in words else 238
    y, x = np.mgrid[:side, :side]
    clip = np.full((frames, side, side, 3), ground, np.int16)
    for t, offset in enumerate(np.linspace(-side / 5, side / 5, frames)):
        u, v = (x - side / 2 - dx * offset) / side, (y - side / 2 - dy * offset) / side
        if "circle" in words:
            inside = np.hypot(u, v) < 0.2
        elif "square" in words:
            inside = np.maximum(abs(u), abs(v)) < 0.18
        else:
            inside = (v < 0.17) & (2 * abs(u) - 0.22 < v + 0.02)
        clip[t][inside] = color
    clip += np.random.default_rng(len(prompt)).integers(-noise, noise + 1, clip.shape, dtype=np.int16)
    return clip.clip(0, 255).astype(np.uint8)


def make_run(folder: Path, prompts: list[str] = PROMPTS, frames: int = 9) -> Path:
    """A finished W8A8 run of `prompts`."""
    write_json(folder / "run.json", run_json(folder, prompts))
    write_json(folder / "plan.json", plan_json(folder))
    write_json(folder / "provenance.json", provenance_json())
    write_json(folder / "status.json", {"state": "done", "seconds": 61.4})
    (folder / "run.log").write_text("dump ...\n")
    entries = [{"index": i, "prompt": prompt, "seed": 1234 + i} for i, prompt in enumerate(prompts)]
    # dump counts its folders over calibration prompts and references together: the reference of prompt 0 is not 000.
    references = [{**row, "folder": f"prompt-{row['index'] + 1:03d}", "roles": ["text"]} for row in entries]
    calibration = {"index": 0, "prompt": prompts[0], "seed": 99, "folder": "prompt-000", "roles": ["calibration"]}
    write_json(folder / "dump/prompts.json", [calibration, *references])
    write_json(folder / "sample/prompts.json", entries)
    (folder / "dump/videos").mkdir()
    (folder / "sample/videos").mkdir()
    rows = []
    for row, reference in zip(entries, references, strict=True):
        before, after = draw(row["prompt"], frames), draw(row["prompt"], frames, noise=5)
        save_clip(before, folder / "dump/videos" / reference["folder"], fps=8)
        save_clip(after, folder / f"sample/videos/prompt-{row['index']:03d}", fps=8)
        rows += [(row["prompt"], before), ("", after)]
    contact_sheet(rows, folder / "sample/contact_sheet.png")
    for step in range(30):
        fill(folder / f"dump/prompt-000/calls/step-{step:03d}.safetensors", 400)
    fill(folder / "calibrate/ranges.json", 900)
    fill(folder / "quantize/quant_model_weight_w8a8.safetensors", 26_412)
    fill(folder / "quantize/quant_model_description_w8a8.json", 4_100)
    write_json(folder / "quantize/layers.json", layers_json())
    write_json(folder / "sample/metrics.json", metrics_json(entries))
    for stage, seconds in zip(STAGES, (31.2, 0.4, 2.1, None, 24.9), strict=True):
        if seconds:
            write_json(folder / f"measurements/{stage}.json", {"machine": MACHINE, "seconds": seconds})
    write_json(folder / "measurements/dump.json", {**measurements(3.41, 0.089, 812_000_000), "seconds": 31.2})
    write_json(folder / "measurements/sample.json", measurements(2.74, 0.0702, 798_000_000) | race())
    return folder


def float_run(folder: Path) -> Path:
    """A finished run that changes nothing."""
    make_run(folder, PROMPTS[:2])
    run = read_json(folder / "run.json")
    run["config"]["quant"]["scheme"] = "none"
    write_json(folder / "run.json", run)
    plan = read_json(folder / "plan.json")
    plan["stages"] = [row for row in plan["stages"] if row["stage"] in ("dump", "sample")]
    write_json(folder / "plan.json", plan)
    shutil.rmtree(folder / "quantize")
    metrics = read_json(folder / "sample/metrics.json")
    del metrics["ledger"]
    for row in metrics["prompts"]:
        row |= {"psnr_db": None, "ssim": 1.0, "flicker": 0.0, "judge_quantized": row["judge_float"]}
    metrics["summary"] |= {"psnr_db": {"median": None, "p5": None}, "ssim": {"median": 1.0, "p5": 1.0}}
    write_json(folder / "sample/metrics.json", metrics)
    write_json(folder / "measurements/sample.json", measurements(3.12, 0.0821, 812_000_000))
    return folder


def failed_run(folder: Path) -> Path:
    """A run that ended in quantize: what came before is there, what would have come after is not."""
    write_json(folder / "run.json", run_json(folder, PROMPTS))
    write_json(folder / "plan.json", plan_json(folder))
    write_json(folder / "provenance.json", provenance_json())
    error = "ValueError: transformer_blocks.3.attn1.to_q: scale 3.1e-9 underflows in float16\nuse model.dtype=bf16"
    write_json(folder / "status.json", {"state": "failed", "stage": "quantize", "error": error, "seconds": 33.0})
    (folder / "traceback.txt").write_text(f"Traceback (most recent call last):\n{error}\n")
    rows = [{"index": i, "prompt": prompt, "seed": i, "roles": ["text"]} for i, prompt in enumerate(PROMPTS[:2])]
    write_json(folder / "dump/prompts.json", rows)
    (folder / "dump/videos").mkdir()
    save_clip(draw(PROMPTS[0]), folder / "dump/videos/prompt-000", fps=8)
    write_json(folder / "measurements/dump.json", {"seconds": 31.2})
    return folder


def make_sweep(folder: Path) -> Path:
    """A sweep of three observers, the third of which failed; the references are linked as the store links them."""
    runs = [make_run(folder / "0", PROMPTS[:2]), make_run(folder / "1", PROMPTS[:2]), failed_run(folder / "2")]
    for place, (run, observer) in enumerate(zip(runs, ("minmax", "mse", "histogram"), strict=True)):
        described = read_json(run / "run.json")
        described["config"]["quant"]["observer"] = observer
        described["config"]["model"]["checkpoint"] = "weights"
        described["config"]["prompts"] = {"text": PROMPTS[:2], "calibration": PROMPTS[:2]}
        write_json(run / "run.json", described)
        for video in (run / "dump/videos").glob("*.mp4"):
            if place:
                video.unlink()
                video.hardlink_to(runs[0] / "dump/videos/prompt-001.mp4")
    metrics, measured = (read_json(runs[1] / name) for name in ("sample/metrics.json", "measurements/sample.json"))
    metrics["summary"]["psnr_db"]["median"] = 35.1
    measured["step_seconds"]["ratio"]["median"] = 1.25
    write_json(runs[1] / "sample/metrics.json", metrics)
    write_json(runs[1] / "measurements/sample.json", measured)
    command = ["python", "-m", "runner", "-m", "quant.observer=minmax,mse,histogram"]
    write_json(folder / "sweep.json", {"name": "a sweep", "command": command, "jobs": ["0", "1", "2"]})
    return folder


MACHINE: Json = {"device": "cpu", "name": "a processor of two cores", "cores": 2, "memory_bytes": 8_000_000_000}


def run_json(folder: Path, prompts: list[str]) -> Json:
    config: Json = {
        "name": "osp12_w8a8",
        "seed": 1234,
        "prompts": {"text": prompts, "calibration": prompts},
        "model": {"name": "osp12", "checkpoint": str(folder / "weights"), "dtype": "bf16", "num_frames": 9}
        | {"height": 64, "width": 64, "fps": 8, "keep_float": ["*net.2*", "*adaln_single*", "proj_out"]},
        "sampler": {"sample_method": "EulerAncestralDiscrete", "num_sampling_steps": 30, "guidance_scale": 4.0},
        "quant": {"scheme": "w8a8", "observer": "minmax", "folder": None},
        "cache": {"policy": "none"},
        "hardware": {"device": "cpu", "env": {}},
        "sample": {"save": True, "compare": True, "judge": "world"},
    }
    fill(folder / "weights/diffusion_pytorch_model.safetensors", 41_250)
    return {
        "name": "osp12_w8a8",
        "command": ["python", "-m", "runner", "+recipe=osp12_w8a8", "prompts.text=[a red circle, a blue square]"],
        "created": "2025-01-02T03:04:05+00:00",
        "config": config,
        "origin": {"quant.scheme": "recipe", "prompts.text": "command line", "sampler.guidance_scale": "checkpoint"},
        "checkpoint": {"label": "the little world", "embedded": True, "path": str(folder / "weights")},
    }


def plan_json(folder: Path) -> Json:
    reasons = ("same as an earlier run", "quant.observer changed: histogram", "builds on calibrate", "no search", "new")
    actions = ("reuse", "run", "run", "skip", "run")
    writes = ("videos, latents, statistics", "ranges.json", "W8A8 weights and description", "", "videos, metrics.json")
    rows = zip(STAGES, actions, reasons, writes, strict=True)
    stages = [{"stage": s, "key": f"{s}-0123abcd", "action": a, "reason": r, "writes": w} for s, a, r, w in rows]
    return {"store": str(folder.parent / ".store"), "stages": stages}


def provenance_json() -> Json:
    return {
        "code": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": False},
        "packages": {"torch": "2.6.0", "diffusers": "0.32.0", "numpy": "1.26.4"},
        "machine": MACHINE,
        "seed": 1234,
        "checkpoint": {"files": {"transformer": {"path": "weights", "sha256": "9f" * 32}}},
        "environment": ["OMP_NUM_THREADS", "MALLOC_TOP_PAD_"],
    }


def layers_json() -> list[Json]:
    """Twelve blocks of seven linears, and one that stays in float by name; worst first, as quantize writes them."""
    dice, rows, kept = random.Random(5), [], []
    linears = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "ff.net.0.proj", "ff.net.2")
    for block in range(12):
        for linear in linears:
            name = f"transformer_blocks.{block}.{linear}"
            if linear == "ff.net.2":
                kept.append({"layer": name, "quantized": False, "why": "*net.2*"})
            else:
                noise = {
                    "snr_db": 24 + 14 * dice.random() - 6 * (block == 3),
                    "worst_call_snr_db": 21.5,
                    "weight_snr_db": 44.1,
                }
                rows.append({"layer": name, **noise, "shape": [192, 192], "calls": 8, "rows": 640, "quantized": True})
    rows.sort(key=lambda row: row["snr_db"])
    return [*rows, *kept, {"layer": "proj_out", "quantized": False, "why": "proj_out"}]


def metrics_json(entries: list[Json]) -> Json:
    dice = random.Random(1)
    rows = []
    for entry in entries:
        figures = {"psnr_db": 27 + 8 * dice.random(), "ssim": 0.93 + 0.06 * dice.random(), "latent_error": 0.04}
        scores = {"flicker": 0.41, "change_float": 3.2, "change_quantized": 3.3}
        judged = {"judge_float": 1.0, "judge_quantized": dice.choice([1.0, 2 / 3])}
        rows.append({"index": entry["index"], "prompt": entry["prompt"], **figures, **scores, **judged})
    summary = {
        "psnr_db": {"median": 31.42, "p5": 27.31},
        "ssim": {"median": 0.9712, "p5": 0.941},
        "latent_error": {"median": 0.0413, "p95": 0.0622},
        "flicker": {"median": 0.412, "p95": 0.873},
        "change": {"float": 3.21, "quantized": 3.26, "difference": 0.05, "low": 0.01, "high": 0.09, "n": len(entries)},
        "judge": {
            "float": 0.979,
            "quantized": 0.973,
            "difference": -0.006,
            "low": -0.018,
            "high": 0.006,
            "n": len(entries),
        },
    }
    ledger = {"int8_matmuls": 38_400, "int8_flops": 1.23e12, "linear_flops": 1.51e12, "int8_share": 1.23 / 1.51}
    return {"prompts": rows, "summary": summary, "ledger": ledger}


def spread(median: float) -> Json:
    return {"median": median, "p25": 0.98 * median, "p75": 1.03 * median, "n": 25}


def measurements(clip_seconds: float, step_seconds: float, memory: int) -> Json:
    """What dump and sample both measure of generating."""
    generation = {
        "clip_seconds": spread(clip_seconds),
        "step_seconds": spread(step_seconds),
        "decode_seconds": spread(0.1),
    }
    return {"machine": MACHINE, "seconds": 24.9, "generation": generation, "peak_memory_bytes": memory}


def race() -> Json:
    """What sample measures of both arms in turn."""
    ratio = {"median": 1.17, "p25": 1.14, "p75": 1.2, "n": 25}
    return {
        "step_seconds": {"float": spread(0.0821), "quantized": spread(0.0702), "ratio": ratio},
        "relative_error": 0.0231,
    }


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def fill(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
