"""What a stage says while it works: a bar on a terminal, few plain lines elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from runner.bench import progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is told to go on."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


def test_plain_lines_have_steps_rate_and_time_left(clock):
    said = io.StringIO()
    with progress.progress(Console(file=said), "dump", 40) as ticker:
        for _ in range(40):
            clock[0] += 0.5
            ticker.advance()
    first, *between, last = said.getvalue().splitlines()
    assert first == "dump       5/40 steps, 2.0/s, 18 s left"  # at most every two seconds
    assert len(between) == 6 and between[-1] == "dump       35/40 steps, 2.0/s, 2 s left"
    assert last == "dump       done in 20.0 s"


def test_short_work_says_that_it_is_done(clock):
    said = io.StringIO()
    with progress.progress(Console(file=said), "calibrate", 3) as ticker:
        for _ in range(3):
            ticker.advance()
    assert said.getvalue() == "calibrate  done in 0.0 s\n"


def test_a_terminal_has_a_bar_with_steps_rate_and_time_left():
    said = io.StringIO()
    console = Console(file=said, force_terminal=True, width=100, color_system=None)
    with progress.progress(console, "sample", 4) as ticker:
        for _ in range(4):
            ticker.advance()
    assert "sample" in said.getvalue() and "4/4" in said.getvalue() and "/s " in said.getvalue()
    assert "left" in said.getvalue() and "sample     done in" in said.getvalue()
