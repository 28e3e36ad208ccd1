"""What other work on the machine costs the main job: wall time alone, beside one busy core, and beside a second run.

    python tests/benchmarks/bench_busy.py [--rounds 3] [+recipe=osp12_w8a8 key=value ...]

The three are taken in turn, each from nothing in an output folder of its own; the second run is the same recipe. `spin`
is the job alone with libgomp's own count of turns that its threads wait, which the runner lowers
(runner.desk.run.launch).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
from processor_line import say_processor

MOST = {"busy core": 2.5, "second run": 2.5, "spin": float("inf")}  # times what the job takes alone


def command(output: Path, arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "runner", *arguments, f"output={output}"]


@contextmanager
def beside(line: Sequence[str]) -> Iterator[None]:
    """Something else that runs meanwhile."""
    other = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
        assert other.poll() in (None, 0), "what ran beside the job has failed"
    finally:
        other.terminate()
        other.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    options, arguments = parser.parse_known_args()
    arguments = arguments or ["+recipe=osp12_w8a8"]
    say_processor()
    seconds: dict[str, list[float]] = {name: [] for name in ("alone", *MOST)}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(options.rounds):
            for name, taken in seconds.items():
                output = Path(folder) / f"{turn}-{name.replace(' ', '-')}"
                other = {
                    "busy core": lambda: beside([sys.executable, "-c", "while True: pass"]),
                    "second run": lambda: beside(command(output / "other", arguments)),  # noqa: B023
                }.get(name, nullcontext)
                spin = {"GOMP_SPINCOUNT": "300000"} if name == "spin" else {}  # libgomp's own
                with other():
                    start = time.perf_counter()
                    subprocess.run(
                        command(output, arguments), check=True, env={**os.environ, **spin}, stdout=subprocess.DEVNULL
                    )
                    taken.append(time.perf_counter() - start)
    missed = False
    for name, taken in seconds.items():
        ratios = [one / alone for one, alone in zip(taken, seconds["alone"], strict=True)]
        low, middle, high = np.percentile(ratios, (25, 50, 75))
        wanted = "" if name in ("alone", "spin") else f", at most {MOST[name]}"
        missed |= bool(wanted) and middle > MOST[name]
        print(f"{name:<10} {np.median(taken):6.1f} s, {middle:.2f} [{low:.2f}, {high:.2f}] of alone{wanted}")
    print("at the runner's count a job alone takes at most 1.05 of what it takes at libgomp's: 1 / the last ratio")
    return int(missed)


if __name__ == "__main__":
    raise SystemExit(main())
