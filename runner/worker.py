"""The bench's door: `python -m runner.worker RUN...` follows the plan of one run folder after another.

The desk has written run.json and plan.json; nothing else reaches this process. What is loaded of the model is kept
from run to run while the model does not change.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from runner.bench.context import Bench, Context
from runner.config.wording import lacks
from runner.hardware import PeerLost, open_device
from runner.hardware.compute import decide
from runner.store import delivery, lifeline
from runner.store.artifacts import Entry, Store
from runner.store.status import FAILED, FINAL, INTERRUPTED, PEER_LOST, STDERR, read_status, write_status

log = logging.getLogger("runner")


def follow(context: Context) -> None:
    """Execute the plan of one run folder; artifacts are committed to the store and linked into the folder."""
    run = context.run
    plan = json.loads((run / "plan.json").read_text())
    store = Store(Path(plan["store"]))
    for planned in plan["stages"]:
        stage, does, key = planned["stage"], planned["does"], planned["key"]
        if planned["action"] == "skip":
            continue
        write_status(run, "running", stage=stage)
        context.enter(planned)
        redo = planned.get("redo")
        waiting = partial(delivery.tell_waiting, planned, say=context.say)
        with store.claim(does, key, str(run), waiting, redo) as entry:
            if entry is None:
                warn(context, planned.get("memory"))
                entry = make(context, store, does, key, again=redo is not None)
            else:
                delivery.tell_reused(planned, context.say)
            context.artifacts[stage] = store.link(entry, run, stage)
        delivery.deliver(store, planned, run, context.config)


def warn(context: Context, memory: int | None) -> None:
    """Say so where a stage probably takes more memory than its card has, which the desk does not know."""
    hardware = context.config["hardware"]
    if memory is None or hardware["device"] == "cpu":
        return
    there = int(context.hardware.describe().get("memory", 0))
    if 0 < there < memory:
        said = lacks(memory, f"the {hardware['device']}", there)
        less = "" if hardware["offload"] else "; hardware.offload=true takes less"
        context.console.print(f"{context.stage:<10} {said}{less}", highlight=False, soft_wrap=True)


def make(context: Context, store: Store, does: str, key: str, again: bool) -> Entry:
    """Run the stage and commit what it writes; what it measured is kept first, so that no artifact goes without."""
    quiet()
    log.info("%s starts, key %s", context.stage, key)
    start = time.perf_counter()
    draft = store.draft(does, key, redo=again)
    context.measured = {} if again else store.measured(does, key) or {}
    importlib.import_module(f"runner.stages.{does.replace('-', '_')}").run(context, draft)
    seconds = time.perf_counter() - start
    machine = context.hardware.describe() | {"processes": int(os.environ.get("WORLD_SIZE", "1"))}
    measured = {"machine": machine, "seconds": seconds, **context.measurements}
    store.write_measurements(does, key, measured)
    entry = store.commit(draft, does, key)
    log.info("%s done in %.1f s", context.stage, seconds)
    return entry


def quiet() -> None:
    """Keep libraries' bars and notices off the terminal, where one line a stage is said."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler; read when torch starts
    import diffusers
    import transformers

    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


def attempt(run: Path, bench: Bench, console: Console) -> bool:
    """Follow one run; whether it finished. A failure leaves its traceback and its cause in the folder."""
    context, start = None, time.perf_counter()
    try:
        context = Context(run, bench, console)
        follow(context)
    except KeyboardInterrupt:  # parts that are finished stay in the store's draft
        write_status(run, "interrupted", stage=context and context.stage)
        raise SystemExit(INTERRUPTED) from None
    except PeerLost as error:  # there is no going on, with this run or the next
        log.error("%s: %s", error, error.__cause__)
        if read_status(run).get("state") != "failed":  # the other one's last words, written before it went
            lost = {} if error.hangs else {"lost": error.rank}  # the launcher ends one that hangs, which is no reason
            write_status(run, "failed", stage=context and context.stage, error=str(error), **lost)
        raise SystemExit(PEER_LOST) from None
    except Exception as error:
        bench.clear()  # what a failed run left in the model is not for the next one
        state, facts = "failed", {"stage": context and context.stage, "error": f"{type(error).__name__}: {error}"}
        with suppress(OSError):  # a full disk
            log.exception("the run failed")
            (run / "traceback.txt").write_text(traceback.format_exc(), encoding="utf-8")
    else:
        state, facts = "done", {}
    try:
        write_status(run, state, **facts, seconds=time.perf_counter() - start)
    except OSError:
        if state == "done":
            raise
        console.print(f"{facts['stage']} failed: {facts['error']}", markup=False, highlight=False)
    return state == "done"


def main(runs: list[Path]) -> int:
    """Follow each run in turn, alone or with the other ranks; the exit status is 1 if any failed."""
    faulthandler.enable()
    lifeline.hold()
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return lead(runs)
    from runner.hardware import mesh
    from runner.parallel import cfg

    quiet()
    try:
        told = json.loads((runs[0] / "run.json").read_text())  # the device is the same in all of them
        open_device(told["config"]["hardware"]["device"]).choose(int(os.environ["LOCAL_RANK"]))
        with mesh.joined():
            agree(told)
            if mesh.rank() == 0:
                failed = lead(runs)
                cfg.dismiss()
                return failed
            cfg.serve()
            return 0
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    except PeerLost:
        return PEER_LOST
    except Exception as error:  # outside of any run's attempt
        last_words(runs, error)
        return FAILED


def agree(told: Mapping[str, Any]) -> None:
    """Raise RuntimeError on every rank where what the machine was to decide would be decided otherwise on another."""
    from runner.hardware import mesh

    config = told["config"]
    if told["origin"].get("hardware.compute") != "machine":
        return
    mine = decide("auto", config["hardware"]["device"], config["model"]["dtype"]).dtype
    each = mesh.gather(mine)
    if len(set(each)) > 1:
        found = ", ".join(f"rank {rank} in {dtype}" for rank, dtype in enumerate(each))
        raise RuntimeError(f"the ranks' machines compute fastest in different dtypes ({found}): set hardware.compute")


def last_words(runs: list[Path], error: Exception) -> None:
    """Leave what ended this rank in the folder of the run that is not over: the others only see that it is gone."""
    traceback.print_exc()
    for run in runs:
        if (told := read_status(run)).get("state") not in FINAL:
            (run / "traceback.txt").write_text(traceback.format_exc(), encoding="utf-8")
            why = f"rank {os.environ['RANK']}: {type(error).__name__}: {error}"
            write_status(run, **{**told, "state": "failed", "error": why})
            return


def lead(runs: list[Path]) -> int:
    """Follow each run in turn; 1 if any failed."""
    bench, console, failed, current = Bench(), Console(), False, runs[0]
    for number, run in enumerate(runs, 1):
        if len(runs) > 1:
            console.print(f"run {number} of {len(runs)}  {run}", highlight=False, soft_wrap=True)
        _take_stderr_along(current, run)
        current = run
        with delivery.logged(run):
            failed |= not attempt(run, bench, console)
    return int(failed)


def _take_stderr_along(before: Path, run: Path) -> None:
    """Where standard error is the file in one run's folder that the desk made, have it be that of the next run."""
    try:
        ours = run != before and os.path.samestat(os.fstat(2), (before / STDERR).stat())
    except OSError:
        return
    if ours:
        with (run / STDERR).open("ab") as file:
            os.dup2(file.fileno(), 2)


if __name__ == "__main__":
    try:
        ended = main([Path(run) for run in sys.argv[1:]])
    except SystemExit as asked:
        ended = int(asked.code or 0)
    if ended:  # somebody waits for the reason: to take torch and a model down tidily takes seconds
        sys.stdout.flush()
        os._exit(ended)
