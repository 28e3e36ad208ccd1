"""Pages: `write(run_folder)` reads what the desk and the bench left there and puts report.html beside it.

`read` turns a run folder into a `Run`, `ledger` a `Run` into figures, `run` lists the sections of its page and `page`
makes HTML of them; `compare` and `many` do the same with several runs. None needs torch or a network.

What a technique shows is in the `rows` of its own room (runner.technique). A new part of every run's page is a
generator in the list `run.PARTS`, of several runs' page a function in `many.MANY`. It yields `Section(template,
values)`. The template holds one <section> with its <h2>, and may refer to its values and nothing else (of a run's page
also to `run`); parts.html.jinja has pieces for it, and the numbers of `wording` are filters. What it shows of a stage
is read through the run (`Run.of_stage`), so that a missing or broken file is said on the page and never an error. A
number that tells runs apart is one of `figures.FIGURES`; the page of many, --csv and --json then have it.
"""

from runner.desk.report.read import read_run
from runner.desk.report.run import write
from runner.page.run import Run

__all__ = ["Run", "read_run", "write"]
