"""What recording costs on top of a step: transformer steps of the shipped model with and without dump's hooks.

    python tests/benchmarks/bench_dump.py

Both arms in one process, in turn; thread CPU time; medians with quartiles of the ratio. The outputs are compared: hooks
must not change a bit.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from processor_line import say_processor

from runner.embedded.training.scores import SHIPPED
from runner.hardware.compute import decide
from runner.model import load_transformer
from runner.recording.recording import Calls
from runner.recording.statistics import LinearStatistics

STEPS, ROUNDS = 4, 25


def main() -> None:
    say_processor()
    torch.set_num_threads(1)
    compute = decide("auto", "cpu", "bf16").dtype
    transformer = load_transformer({"name": "osp12", "checkpoint": SHIPPED["osp12"], "dtype": compute}, "cpu")
    channels = transformer.config.caption_channels
    call = {
        "hidden_states": torch.randn(2, 4, 5, 8, 8, dtype=transformer.dtype),
        "timestep": torch.tensor([500.0, 500.0]),
        "encoder_hidden_states": torch.randn(2, 1, 16, channels, dtype=transformer.dtype),
        "encoder_attention_mask": (torch.arange(16) < 7).long().expand(2, 1, 16),
    }
    steps = SimpleNamespace(position=0, call=0)

    def run() -> tuple[float, torch.Tensor]:
        start = time.thread_time()
        for position in range(STEPS):
            steps.position = position
            output = transformer(**call, return_dict=False)[0]
        return time.thread_time() - start, output

    ratios, plain = [], []
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        run()
        for _ in range(ROUNDS):
            seconds, wanted = run()
            with LinearStatistics(transformer, steps) as recorded, Calls(transformer, steps, Path(folder)):
                recorded_seconds, got = run()
                start = time.thread_time()
                recorded._close_step()
                recorded_seconds += time.thread_time() - start
            assert torch.equal(wanted, got)
            plain.append(seconds / STEPS)
            ratios.append(recorded_seconds / seconds)
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"a step {1e3 * statistics.median(plain):.1f} ms; with recording x {middle:.3f} ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
