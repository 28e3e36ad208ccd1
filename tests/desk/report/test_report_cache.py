"""The page of a run with a cache: what is reused, what was verified, and its plots."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from desk.make_run import make_run, read_json, write_json

from runner.cache.rows import in_words
from runner.desk.report import write
from runner.page.plot import heat

RECTANGLE = {"cache_step_start": 2, "cache_step_interval": 2, "cache_block_start": 1, "cache_num_blocks": 2}
SEGMENTS = {"cache_num_steps": 8, "cache_segments": [{"step": 1, "reuses": 2, "block_start": 0, "num_blocks": 2}]}
VERIFIED = [
    {"config": RECTANGLE, "predicted_damage": 0.05, "predicted_speedup": 1.31, "errors": [0.06], "damage": 0.06},
    {"config": SEGMENTS, "predicted_damage": 0.04, "predicted_speedup": 1.32, "errors": [0.03], "damage": 0.03},
]
SEARCH = {
    "search": "recording", "statement": "a speed-up of 1.3 it is", "answer": 1, "forwards": 150, "generations": 5.0,
    "verified": VERIFIED, "front": [{"predicted_damage": 0.01, "predicted_speedup": 1.1},
                                    {"predicted_damage": 0.09, "predicted_speedup": 1.5}],
    "movement": [[0.1, 0.2, 0.4, 0.3]] * 7,
}  # fmt: skip
SPEEDS = [{"speedup": 1.29, "low": 1.27, "high": 1.31}, {"speedup": 1.33, "low": 1.31, "high": 1.36}]
SPEED = {"speedup": 1.334, "low": 1.31, "high": 1.36, "full_seconds": 0.1, "reuse_seconds": 0.06, "steps_timed": 28}


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    folder = make_run(tmp_path / "run")
    run = read_json(folder / "run.json")
    run["config"]["cache"] = {"policy": "dit_cache", "ratio": 1.3}
    write_json(folder / "run.json", run)
    metrics = read_json(folder / "sample/metrics.json")
    metrics["cache"] = {"config": RECTANGLE, "blocks": 4, "ranges": [None, None, None, [1, 3]] * 2}
    write_json(folder / "sample/metrics.json", metrics)
    write_json(folder / "measurements/sample.json", read_json(folder / "measurements/sample.json") | {"cache": SPEED})
    write_json(folder / "measurements/search-cache.json", {"verified": SPEEDS})
    write_json(folder / "search-cache/search.json", SEARCH)
    return folder


def text_of(folder: Path) -> str:
    html = write(folder).read_text(encoding="utf-8")
    return " ".join(re.sub(r"<[^>]+>", " ", html).split()).replace("\u202f", " ")


def test_the_page_says_what_is_reused_and_how_it_was_found(cached: Path) -> None:
    text = text_of(cached)
    for words in (
        "A W8A8 step is 1.17× as fast as a float one; reuse makes the denoising loop 1.33× as fast",
        "speed of the loop, all computed = 1 1.31× to 1.36× 1.33×",
        "A speed-up of 1.3 it is. The search called the model 150 times, as 5.00 generations do",
        "blocks 1 to 2, from step 2, all computed every 2 1.31× 1.29× 1.27× to 1.31× 0.0500 0.0600",
        "1 segment chosen 1.32× 1.33× 1.31× to 1.36× 0.0400 0.0300",
        "Blocks computed over all steps 100.0% 4 blocks a step 87.5% 1.14× as fast if blocks were all",
        "medians of 28 of its steps",
    ):
        assert words in text, words


def test_the_plots_are_there(cached: Path) -> None:
    html = write(cached).read_text(encoding="utf-8")
    for name in ("cache-front", "cache-held", "cache-mask", "cache-movement"):
        assert f'id="{name}-title"' in html
    mask = html[html.index('"cache-mask-title"') :].split("</svg>")[0]
    assert mask.count("fill-opacity") == 4  # two blocks, each twice
    assert html.count('class="chosen"') == 2 and html.count('class="limits"') == 2


def test_a_page_without_a_search_shows_the_mask_alone(cached: Path) -> None:
    (cached / "search-cache/search.json").unlink()
    html = write(cached).read_text(encoding="utf-8")
    assert "cache-mask-title" in html and "cache-front-title" not in html and "called the model" not in html


def test_configurations_in_words() -> None:
    assert in_words(RECTANGLE | {"cache_num_blocks": 1}).startswith("block 1,")
    assert in_words(RECTANGLE | {"cache_num_blocks": 0}).startswith("no block,") and in_words({}) == "–"


def test_a_heat_map_joins_equal_neighbors() -> None:
    svg = heat([[0.0, 0.5, 0.5, 1.0]], "x", "y", "name", "about")
    assert svg.count("fill-opacity") == 2 and heat([], "x", "y", "name", "about") == ""
