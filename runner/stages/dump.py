"""dump: run the float model once and keep what every later stage needs (runner/recording/recording.py names the files).

Calibration prompts are recorded: the transformer's calls, streamed to disk, the statistics of every linear's input, how
the block boundaries moved (for a search of a cache), the latents and predictions of every step. Of the prompts that a
schedule is searched on, and of those that a search checks its answer on, the steps are kept. What sample will generate
is run too, as the float reference of the comparison. Caches are never active.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runner.bench.context import Context
from runner.cache import rules
from runner.generation.block_times import BlockTimes
from runner.generation.generate import Clock, forwards, frame_rate, generate, save_part
from runner.generation.offload import on_device
from runner.generation.sharing import content, mirrored
from runner.generation.steps import Steps
from runner.hardware.casting import DTYPES
from runner.quant.calib_data import replay, write_calib_data
from runner.recording.movement import Boundaries
from runner.recording.recording import Calls, Recording, Trajectory
from runner.recording.statistics import LinearStatistics
from runner.store.durable import finish, unfinished


@dataclass(frozen=True)
class Part:
    """One prompt to run: where it goes, its place in its own list (which seeds it), and what it is for."""

    folder: str
    prompt: str
    index: int
    seed: int
    roles: list[str]


# A search checks its answer on noise that it has not seen.
VERIFICATION_SEED = 1_000_000


def parts(prompts: Mapping[str, list[str]], seed: int, batch_size: int) -> list[Part]:
    """Recorded prompts first, each alone, then those that a search checks its answer on; then the reference prompts,
    unless one run serves both. `prompts` are lists by what for: calibration or trajectory, verification, text."""
    wanted = [
        (prompt, index, [role])
        for role in ("calibration", "trajectory", "verification")
        for index, prompt in enumerate(prompts.get(role, []))
    ]
    for index, prompt in enumerate(prompts.get("text", [])):
        same = next(
            (w for w in wanted if w[:2] == (prompt, index) and w[2][0] != "verification" and "text" not in w[2]), None
        )
        # A batched reference is another computation than the recorded single one: its bits may differ.
        if same and batch_size == 1:
            same[2].append("text")
        else:
            wanted.append((prompt, index, ["text"]))
    return [
        Part(f"prompt-{n:03d}", p, i, seed + i + (VERIFICATION_SEED if "verification" in roles else 0), roles)
        for n, (p, i, roles) in enumerate(wanted)
    ]


def batches(parts: list[Part], size: int) -> Iterator[list[Part]]:
    recorded = [part for part in parts if part.roles != ["text"]]
    yield from ([part] for part in recorded)
    rest = parts[len(recorded) :]
    yield from (rest[i : i + size] for i in range(0, len(rest), size))


def run(context: Context, draft: Path) -> None:
    config = context.config
    wanted = parts(context.prompts, config["seed"], config["model"]["batch_size"])
    pipeline = context.pipeline()
    evaluations = forwards(pipeline, config["sampler"]["num_sampling_steps"])
    todo = [
        b for b in batches(wanted, config["model"]["batch_size"]) if not all((draft / p.folder).exists() for p in b)
    ]
    clock, times = Clock(), BlockTimes(pipeline, context.hardware, evaluations)
    context.hardware.reset_peak_memory()
    with context.progress(len(todo) * evaluations) as ticker:
        for batch in todo:
            _run_batch(context, pipeline, batch, draft, clock, times, ticker.advance)
    context.measurements |= {"generation": clock.summary(), "peak_memory_bytes": context.hardware.peak_memory()}
    context.measurements["blocks"] = times.summary()

    entries = [asdict(part) for part in wanted]
    if config["dump"]["from"] is not None:
        entries += replay(Path(config["dump"]["from"]), on_device(pipeline.transformer), draft)
    (draft / "prompts.json").write_text(json.dumps(entries, indent=2))
    if config["dump"]["format"] != "safetensors":
        file = draft / "calib_data.pth"
        by_step, dtype = config["dump"]["format"] == "pth_timestep", config["model"]["dtype"]
        stored = None if config["hardware"]["compute"] == dtype else DTYPES[dtype]
        write_calib_data(Recording(draft), pipeline.transformer, file, timesteps=by_step, dtype=stored)


def _run_batch(
    context: Context,
    pipeline: Any,
    batch: list[Part],
    draft: Path,
    clock: Clock,
    times: BlockTimes,
    on_step: Callable[[], None],
) -> None:
    """Generate one batch; its folders appear under their names only when they are whole."""
    drafts = [unfinished(draft / part.folder) for part in batch]
    with ExitStack() as stack:
        steps = stack.enter_context(Steps(pipeline))
        record = "calibration" in batch[0].roles
        if record:
            statistics = stack.enter_context(mirrored(LinearStatistics, pipeline.transformer, steps))
            stack.enter_context(Calls(pipeline.transformer, steps, drafts[0]))
            if rules.searches(context.config["cache"]):
                stack.enter_context(Boundaries(pipeline, steps, context.config["recording"]["lags"], drafts[0]))
        if batch[0].roles != ["text"]:
            Trajectory(steps, drafts[0])
            # The last, so that no other hook is timed.
            stack.enter_context(content(times.watch(steps), pipeline.transformer))
        generation = generate(
            pipeline,
            context.config,
            [p.prompt for p in batch],
            [p.seed for p in batch],
            context.hardware,
            on_step,
            steps=steps,
        )
    clock.add(generation, len(batch))
    if record:
        statistics.save(drafts[0])
    for row, (part, folder) in enumerate(zip(batch, drafts, strict=True)):
        video = save_part(generation, row, folder, draft / "videos" / part.folder, frame_rate(context.config))
        finish(draft / part.folder, beside=video)
