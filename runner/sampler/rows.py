"""What pages say of a schedule: the timesteps that a search found, and what else it tried. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from runner.page.pieces import Section
from runner.page.plot import Axis, Point, scatter
from runner.page.run import Run
from runner.page.values import number, pick, rows
from runner.technique import questions

STAGE = "search-schedule"


class Rows(questions.Rows):
    """A searched schedule: fewer steps in place of a longer run."""

    def name(self, config: Mapping[str, Any]) -> str | None:
        """How many steps were searched."""
        searched = pick(config, "sampler", "search") is not None
        return f"{pick(config, 'sampler', 'num_sampling_steps')} steps" if searched else None

    def claim(self, run: Run) -> str:
        """How many steps stand for how many."""
        steps, recorded = number(run.config, "sampler", "num_sampling_steps"), number(run.config, "recording", "steps")
        if not run.of_stage(STAGE, "search.json") or steps is None or recorded is None:
            return ""
        return f"{steps:.0f} steps in place of {recorded:.0f}"

    def sections(self, run: Run) -> Iterator[Section]:
        """The timesteps that a search found, beside the solver's own, and how those that were tried came out."""
        search = run.of_stage(STAGE, "search.json")
        tried = rows(search.get("tried"))
        searched = next((row.get("timesteps") for row in tried if row.get("name") == search.get("chosen")), None)
        if not searched or not search.get("uniform"):
            return
        points = [Point("", n, t) for n, t in enumerate(searched, 1)]
        axes = Axis("step", "{:.0f}".format), Axis("timestep", "{:.0f}".format)
        svg = scatter(points, *axes, "schedule-plot", joined=True, under=list(enumerate(search["uniform"], 1)))
        values = {
            "steps": len(searched),
            "recorded": len(pick(search, "recorded", "timesteps") or ()),
            "prompts": number(search, "recorded", "prompts"),
            "forwards": number(search, "forwards"),
            "chosen": search["chosen"],
            "tried": [(str(row.get("name")), number(row, "predicted"), number(row, "error")) for row in tried],
        }
        yield Section("sampler/schedule.html.jinja", {"svg": svg, **values})
