"""The page of a run: `write(run_folder)` reads what the desk and the bench left there and puts report.html beside it.

`read` turns a run folder into a `Run`, `ledger` a `Run` into figures, `run` lists the sections of its page and `page`
makes HTML of them. None needs torch or a network.
"""

from runner.desk.report.read import Run, read_run
from runner.desk.report.run import write

__all__ = ["Run", "read_run", "write"]
