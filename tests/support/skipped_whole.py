"""A pytest plugin: says after a run which test files skipped whole, and why. What never runs must not look green."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the files of which no test ran; nothing where there is none."""
    stats = terminalreporter.stats
    ran = (
        report for outcome in ("passed", "failed", "error", "xfailed", "xpassed") for report in stats.get(outcome, ())
    )
    skipped = whole(stats.get("skipped", ()), ran)
    if skipped:
        files = "file" if len(skipped) == 1 else "files"
        terminalreporter.section(f"skipped whole: {len(skipped)} {files}", sep="-")
        for file, why in skipped.items():
            terminalreporter.write_line(f"{file}: {'; '.join(why)}")


def whole(skipped: Iterable[pytest.TestReport], ran: Iterable[pytest.TestReport]) -> dict[str, Sequence[str]]:
    """The files with skipped tests and no other, sorted; of each the reasons, the most frequent first."""
    others = {_file(report) for report in ran}
    found: dict[str, Counter[str]] = {}
    for report in skipped:
        if _file(report) not in others:
            found.setdefault(_file(report), Counter())[_why(report)] += 1
    return {file: [why for why, _ in found[file].most_common()] for file in sorted(found)}


def _file(report: pytest.TestReport) -> str:
    return report.nodeid.partition("::")[0]


def _why(report: pytest.TestReport) -> str:
    """The reason that was given; of a skip, pytest keeps (file, line, "Skipped: reason")."""
    told = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return told.removeprefix("Skipped: ")
