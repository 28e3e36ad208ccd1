"""A worker without a model: it writes a word in place of every artifact, and what it does into $JOURNAL.

Seed 13 fails and seed 9 is killed, each time it is asked; where $KILL_PARENT is set, seed 8 kills the process that
started it. $WORD is what else it writes, for runs that are to differ.
"""

import json
import os
import sys
import time
from pathlib import Path

from runner.store.artifacts import Store


def note(line: str) -> None:
    if "JOURNAL" in os.environ:
        with open(os.environ["JOURNAL"], "a") as journal:
            journal.write(f"{line}\n")


def follow(run: Path) -> bool:
    plan = json.loads((run / "plan.json").read_text())
    seed = json.loads((run / "run.json").read_text())["config"]["seed"]

    def tell(**facts: object) -> None:
        (run / "status.json").write_text(json.dumps(facts))

    tell(state="running", stage="dump")
    if seed == 13:
        tell(state="failed", stage="dump", error="ValueError: thirteen")
        return False
    if seed == 8 and "KILL_PARENT" in os.environ:
        os.kill(os.getppid(), 9)
        time.sleep(5)
    if seed == 9:
        os.kill(os.getpid(), 9)
    store = Store(Path(plan["store"]))
    for row in plan["stages"]:
        if row["action"] == "skip":
            continue
        with store.claim(row["does"], row["key"], str(run), print, row["redo"]) as entry:
            if entry is None:
                draft = store.draft(row["does"], row["key"])
                (draft / "made").write_text(row["stage"] + os.environ.get("WORD", ""))
                note(f"{row['stage']} {run.name}")
                entry = store.commit(draft, row["does"], row["key"])
            store.link(entry, run, row["stage"])
    tell(state="done", seconds=1.5)
    return True


if __name__ == "__main__":
    note(f"worker {len(sys.argv) - 1}")
    sys.exit(not all([follow(Path(run)) for run in sys.argv[1:]]))
