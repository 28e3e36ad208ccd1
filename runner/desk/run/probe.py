"""How long a run will take: two steps of the float model, timed on this machine, times what the plan counts.

A probe is a run of its own, of one prompt and two steps, with a store that is thrown away: it is a measurement, not an
artifact. What it measured is kept in the real store's measurements, so that the jobs of a sweep share one probe.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.config.wording import seconds, size
from runner.desk.plan import graph
from runner.desk.plan.forwards import forwards
from runner.desk.run import launch
from runner.sampler.methods import fewest_steps
from runner.store.artifacts import Store

if TYPE_CHECKING:
    from runner.desk.run.job import Job

STEPS, PROMPT = 2, "A small wooden boat drifts across a calm lake at sunrise."
# What the probe has in place of the run's own values, because it changes no forward's time, or would add to it.
ALTERED = {
    "seed": 0, "until": None, "redo": None, "sampler.schedule": None,
    "sampler.search": None, "sampler.noise": "draws", "quant.scheme": "none", "cache.policy": "none",
    "cache.config": None, "cache.ratio": None, "sample.save": False, "sample.folder": None, "sample.compare": False,
    "sample.judge": "none", "sample.lpips": None, "sample.clip": None,
}  # fmt: skip


@dataclass(frozen=True)
class Probe:
    """What the probe measured, in seconds: one forward of the transformer, the decoding of one batch of clips, and what
    comes before the first step; its peak of memory in bytes; and when that was."""

    forward: float
    decode: float
    load: float
    memory: int
    measured: str

    def __str__(self) -> str:
        times = [seconds(value) for value in (self.forward, self.decode, self.load)]
        return (
            f"the float model on this machine ({self.measured}): a forward {times[0]}, decoding {times[1]}, "
            f"loading {times[2]}, peak memory {size(self.memory)}"
        )

    def seconds(self, planned: Sequence[graph.PlannedStage]) -> dict[str, float]:
        """Of each stage that runs and calls the transformer; the first of them loads the model."""
        found: dict[str, float] = {}
        for stage in planned:
            if stage.action == "run" and stage.forwards:
                load = 0.0 if found else self.load
                found[stage.stage] = load + stage.forwards * self.forward + stage.clips * self.decode
        return found


def probe(job: Job) -> Probe:
    """The probe of a job: as measured before with this model and these sizes on this machine, else measured now.

    Raises RunFailed with what keeps two steps from running.
    """
    steps = max(STEPS, fewest_steps(job.config["sampler"]["sample_method"]))
    prompts = [PROMPT] * job.config["model"]["batch_size"]
    values = {**ALTERED, "prompts.text": prompts, "sampler.num_sampling_steps": steps}
    altered = graph.with_values(job.config, values)
    run = Path(tempfile.mkdtemp(prefix="probe-"))
    store = Store(run / ".store")
    stage = next(row for row in graph.plan(altered, store, job.fingerprints) if row.stage == "sample")
    known = job.store.measured("probe", stage.key)
    if known is None:
        (run / "run.json").write_text(json.dumps({"config": altered}), encoding="utf-8")
        plan = {"store": str(store.root), "stages": [asdict(stage)]}
        (run / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
        print("probe    two steps of the float model, to tell the time", flush=True)
        launch.launch(run, altered)
        known = _read(json.loads((run / "measurements" / "sample.json").read_text(encoding="utf-8")), altered)
        job.store.write_measurements("probe", stage.key, known)
    shutil.rmtree(run)  # of a probe that failed it stays, because it says why
    return Probe(**known)


def _read(measured: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The probe that a run's measurements make. A step is one evaluation by the solver: of both branches in turn it has
    two forwards."""
    batch, generation = config["model"]["batch_size"], measured["generation"]
    steps = forwards(graph.with_values(config, {"sampler.guidance_batch": "joint"}))
    step, decode = generation["step_seconds"]["median"], batch * generation["decode_seconds"]["median"]
    return {
        "forward": step / (forwards(config) / steps),
        "decode": decode,
        "load": max(0.0, measured["seconds"] - steps * step - decode),
        "memory": measured["peak_memory_bytes"],
        "measured": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
