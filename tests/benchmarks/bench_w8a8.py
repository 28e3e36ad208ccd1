"""What W8A8 costs on the shipped weights: the judge's paired interval and PSNR over many clips.

    python tests/benchmarks/bench_w8a8.py [--model osp12] [--clips 300] [--steps 30] [--output outputs]

Runs the recipe itself (its artifacts are reused when it is run again) on captions of every combination of the little
world, calibrated on its usual calibration prompts, and prints the summary. Passes when the interval lies above -2
points and the median PSNR is at least 25 dB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from processor_line import say_processor

from runner.embedded import world
from runner.embedded.training.scores import SHIPPED, spread


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHIPPED, default="osp12")
    parser.add_argument("--clips", type=int, default=300)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--output", type=Path, default=Path("outputs"))
    options = parser.parse_args()
    say_processor()

    name = f"bench_{options.model}_w8a8"
    prompts = options.output / f"{name}.txt"
    prompts.parent.mkdir(parents=True, exist_ok=True)
    prompts.write_text("\n".join(spread("all", options.clips, 0, world.motions_of(options.model))))
    arguments = [f"prompts.text={prompts}", "model.batch_size=10", f"sampler.num_sampling_steps={options.steps}"]
    recipe = f"+recipe={options.model}_w8a8"
    command = [sys.executable, "-m", "runner", recipe, f"name={name}", f"output={options.output}"]
    subprocess.run([*command, *arguments], check=True)

    run = max((options.output / name).iterdir(), key=lambda folder: folder.stat().st_mtime_ns)
    summary = json.loads((run / "sample" / "metrics.json").read_text())["summary"]
    print(json.dumps(summary, indent=2))
    judge, psnr = summary["judge"], summary["psnr_db"]["median"]
    difference, low, high = (100 * judge[name] for name in ("difference", "low", "high"))
    print(f"judge: float {judge['float']:.4f}, W8A8 {judge['quantized']:.4f}, {judge['n']} clips")
    print(f"difference {difference:+.2f} points, 95 % [{low:+.2f}, {high:+.2f}]")
    print(f"median PSNR {psnr if psnr is None else round(psnr, 2)} dB")
    return int(low <= -2 or (psnr is not None and psnr < 25))


if __name__ == "__main__":
    sys.exit(main())
