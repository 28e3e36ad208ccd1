"""Declarative experiments on diffusion transformers: one recipe, one command, one page. Start at __main__.py.

From Python: `run`, `open_run`, and what they raise, `Refused` and `RunFailed`, each imported when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runner.config.faults import Refused  # points up: a type alone
    from runner.desk.run.launch import RunFailed  # points up: a type alone
    from runner.notebook.runs import Run, open_run, run  # points up: a type alone

__all__ = ["Refused", "Run", "RunFailed", "open_run", "run"]


def __getattr__(name: str) -> Any:
    """What is asked for by `runner.NAME`, from its room."""
    if name == "Refused":
        from runner.config import faults

        return faults.Refused
    if name == "RunFailed":
        from runner.desk.run import launch

        return launch.RunFailed
    if name in __all__:
        from runner.notebook import runs

        return getattr(runs, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
