"""Runs from Python, for notebooks: `runner.run` and `runner.open_run`. Imports no torch; a run has its own process."""
