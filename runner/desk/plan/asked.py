"""What the user asks of a plan beside its configuration: where to stop (until=), what to make again (redo=)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from runner.config.faults import Fault, Refused

if TYPE_CHECKING:
    from runner.desk.plan.graph import PlannedStage


def as_asked(
    planned: Sequence[PlannedStage], until: str | None, redo: str | Sequence[str] | None
) -> list[PlannedStage]:
    """The plan with nothing after `until`, and with the stages `redo` and all that build on them made again.

    Raises Refused where a stage that is to be made again has no part in the run.
    """
    names = [stage.stage for stage in planned]
    last = len(names) if until is None else names.index(until)
    again = [redo] if isinstance(redo, str) else list(redo or ())
    now = time.time()  # what was made before this is to be made again
    found: list[PlannedStage] = []
    made_again: set[str] = set()
    for place, stage in enumerate(planned):
        if place > last:
            found.append(replace(stage, key="", action="skip", reason=f"after until={until}", lineage={}))
            continue
        causes = [name for name in stage.needs if name in made_again]
        if stage.action != "skip" and (stage.stage in again or causes):
            made_again.add(stage.stage)
            reason = "asked for by redo" if stage.stage in again else f"builds on {' and '.join(causes)}, made again"
            stage = replace(stage, action="run", reason=reason, redo=now)
        found.append(stage)
    idle = [stage for stage in found if stage.stage in again and stage.action == "skip"]
    if idle:
        raise Refused(Fault("redo", f"has no part in this run: {stage.reason}", stage.stage) for stage in idle)
    return found
