"""README and docs: links lead somewhere, README is short, and files that sentences name are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
FILE = re.compile(r"`((?:runner|tests|conf|docs|recipes)/[\w./-]+)`")
MADE_UP = ("recipes/mine.yaml", "w8a16", "model/mine", "measure")  # of the walk-throughs


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_files_are_there(page):
    text = " ".join(page.read_text(encoding="utf-8").split())
    for link in LINK.findall(text):
        if link.startswith("http"):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
    for name in FILE.findall(text):
        assert any(part in name for part in MADE_UP) or (ROOT / name).exists(), name


def test_readme_is_short_and_has_the_two_commands():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 170
    assert [line for line in lines if line.startswith("<!-- command")] == ["<!-- command 1 -->", "<!-- command 2 -->"]
    assert max((ROOT / "docs").glob("*.png"), key=lambda file: file.stat().st_size).stat().st_size < 150_000


def test_every_page_is_reached_from_readme():
    linked = set(LINK.findall((ROOT / "README.md").read_text(encoding="utf-8")))
    for page in (ROOT / "docs").rglob("*.md"):
        assert str(page.relative_to(ROOT)) in {link.partition("#")[0] for link in linked}, page
