"""dump: run the float model once and keep what every later stage needs (runner/recording.py names the files).

Calibration prompts are recorded: the transformer's calls, streamed to disk, and the statistics of every linear's input.
The prompts that sample will generate are run too, as the float reference of the comparison. Caches are never active.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runner.bench import Context
from runner.generation import Clock, forwards, generate, save_part
from runner.quant.calib_data import replay, write_calib_data
from runner.recording import Calls, Recording, Steps
from runner.statistics import LinearStatistics


@dataclass(frozen=True)
class Part:
    """One prompt to run: where it goes, its place in its own list (which seeds it), and what it is for."""

    folder: str
    prompt: str
    index: int
    seed: int
    roles: list[str]


def parts(config: dict[str, Any]) -> list[Part]:
    """Calibration prompts first, each recorded alone; then the reference prompts, unless one run serves both."""
    seed, calibration, text = config["seed"], config["prompts"]["calibration"], config["prompts"]["text"]
    wanted: list[tuple[str, int, list[str]]] = []
    if config["quant"]["scheme"] != "none" and config["dump"]["from"] is None:
        wanted += [(prompt, index, ["calibration"]) for index, prompt in enumerate(calibration)]
    for index, prompt in enumerate(text if config["sample"]["compare"] else []):
        same = next((w for w in wanted if w[:2] == (prompt, index)), None)
        # A batched reference is another computation than the recorded single one: its bits may differ.
        if same and config["model"]["batch_size"] == 1:
            same[2].append("text")
        else:
            wanted.append((prompt, index, ["text"]))
    return [Part(f"prompt-{n:03d}", p, i, seed + i, roles) for n, (p, i, roles) in enumerate(wanted)]


def batches(parts: list[Part], size: int) -> Iterator[list[Part]]:
    recorded = [part for part in parts if "calibration" in part.roles]
    yield from ([part] for part in recorded)
    rest = parts[len(recorded) :]
    yield from (rest[i : i + size] for i in range(0, len(rest), size))


def run(context: Context, draft: Path) -> None:
    config = context.config
    wanted = parts(config)
    pipeline = context.pipeline()
    evaluations = forwards(pipeline, config["sampler"]["num_sampling_steps"])
    todo = [
        b for b in batches(wanted, config["model"]["batch_size"]) if not all((draft / p.folder).exists() for p in b)
    ]
    clock = Clock()
    context.hardware.reset_peak_memory()
    with context.progress(len(todo) * evaluations) as ticker:
        for batch in todo:
            _run_batch(context, pipeline, batch, draft, clock, ticker.advance)
    context.measurements |= {"generation": clock.summary(), "peak_memory_bytes": context.hardware.peak_memory()}

    entries = [asdict(part) for part in wanted]
    if config["dump"]["from"] is not None:
        entries += replay(Path(config["dump"]["from"]), pipeline.transformer, draft)
    (draft / "prompts.json").write_text(json.dumps(entries, indent=2))
    if config["dump"]["format"] != "safetensors":
        file = draft / "calib_data.pth"
        write_calib_data(
            Recording(draft), pipeline.transformer, file, timesteps=config["dump"]["format"] == "pth_timestep"
        )


def _run_batch(context: Context, pipeline: Any, batch: list[Part], draft: Path, clock: Clock, on_step: Any) -> None:
    """Generate one batch; its folders appear under their names only when they are whole."""
    drafts = [draft / f"{part.folder}.part" for part in batch]
    for folder in drafts:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    with ExitStack() as stack:
        steps = stack.enter_context(Steps(pipeline))
        record = "calibration" in batch[0].roles
        if record:
            statistics = stack.enter_context(LinearStatistics(pipeline.transformer, steps))
            stack.enter_context(Calls(pipeline.transformer, steps, drafts[0]))
        generation = generate(
            pipeline, context.config, [p.prompt for p in batch], [p.seed for p in batch], context.hardware, on_step
        )
    clock.add(generation, len(batch))
    if record:
        statistics.save(drafts[0])
    for row, (part, folder) in enumerate(zip(batch, drafts, strict=True)):
        save_part(generation, row, folder, draft / "videos" / part.folder, context.config["model"]["fps"])
        os.replace(folder, draft / part.folder)
