"""Pages: `write(run_folder)` reads what the desk and the bench left there and puts report.html beside it.

`read` turns a run folder into a `Run`, `ledger` a `Run` into figures, `run` lists the sections of its page and `page`
makes HTML of them; `compare` and `many` do the same with several runs. None needs torch or a network.

A new section of a run's page is a function in the list `run.SECTIONS`, of several runs' page one in `many.MANY`. It
takes the `Run` (the `Comparison`, and the folder that the page will lie in) and returns `Section(template, values)`,
or None where there is nothing to show. The template is a file beside this one, holds one <section> with
its <h2>, and may refer to its values and nothing else (of a run's page also to `run`); parts.html.jinja has pieces
for it, and the numbers of `wording` are filters. What it shows of a stage is a field of `Run` that `read_run` fills
through its `Reader`, so that a missing or broken file is said on the page and never an error. A number that tells runs
apart is a row of `figures.FIGURES`; the page of many, --csv and --json then have it.
"""

from runner.desk.report.read import Run, read_run
from runner.desk.report.run import write

__all__ = ["Run", "read_run", "write"]
