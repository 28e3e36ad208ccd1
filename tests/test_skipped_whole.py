"""A file that skips whole is counted and named with its reasons; one of which any test ran is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = {
    "test_by_mark.py": "import pytest\npytestmark = pytest.mark.skipif(True, reason='needs a card')\n"
    "def test_a(): pass\ndef test_b(): pass\n",
    "test_by_import.py": "import pytest\npytest.importorskip('no_such_package')\ndef test_a(): pass\n",
    "test_each.py": "import pytest\ndef test_a(): pytest.skip('no wheel')\ndef test_b(): pytest.skip('no host')\n",
    "test_some.py": "import pytest\ndef test_a(): pytest.skip('here')\ndef test_b(): pass\n",
    "test_failing.py": "import pytest\ndef test_a(): pytest.skip('here')\ndef test_b(): assert 0\n",
    "test_running.py": "def test_a(): pass\n",
}
SUPPORT = Path(__file__).parent


def told(folder: Path, *options: str) -> list[str]:
    """What a run of pytest over a folder prints under the heading, with it."""
    environment = {**os.environ, "PYTHONPATH": str(SUPPORT), "PYTEST_ADDOPTS": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "support.skipped_whole", "--rootdir", str(folder), *options]
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, env=environment, cwd=folder)
    lines = done.stdout.splitlines()
    starts = [place for place, line in enumerate(lines) if "skipped whole" in line]
    if not starts:
        return []
    (start,) = starts
    return [lines[start].strip("- "), *(line for line in lines[start + 1 : start + 4] if line.startswith("test_"))]


@pytest.mark.parametrize("options", [[], ["-n", "2"]], ids=["alone", "distributed"])
def test_files_that_skip_whole_are_counted_and_named(tmp_path: Path, options: list[str]) -> None:
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    assert told(tmp_path, *options) == [
        "skipped whole: 3 files",
        "test_by_import.py: could not import 'no_such_package': No module named 'no_such_package'",
        "test_by_mark.py: needs a card",
        "test_each.py: no wheel; no host",
    ]


def test_where_none_does_nothing_is_said(tmp_path: Path) -> None:
    for name in ("test_some.py", "test_failing.py", "test_running.py"):
        (tmp_path / name).write_text(FILES[name])
    assert told(tmp_path) == []
