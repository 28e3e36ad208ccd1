"""Several runs on one page, as CSV and as JSON: what differs, and nothing else."""

import csv
import io
import json
import re
import shutil
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
from desk.make_run import PROMPTS, float_run, make_run, make_sweep, read_json, write_json
from support.pages import Page

from runner.__main__ import door
from runner.config import wording
from runner.desk.report.compare import compare, members
from runner.desk.report.many import write_many
from runner.page.plot import Axis, Point, scatter, ticks


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sweep(tmp_path_factory.mktemp("sweeps") / "made")


@pytest.fixture
def sweep(made: Path, tmp_path: Path) -> Path:
    """A sweep to spoil."""
    copy = tmp_path / "sweep & name #1"
    shutil.copytree(made, copy)
    for video in copy.glob("[12]/dump/videos/*.mp4"):
        video.unlink()
        video.hardlink_to(copy / "0/dump/videos/prompt-001.mp4")
    return copy


def test_only_what_differs_has_a_column(sweep: Path) -> None:
    comparison = compare(members(sweep))
    assert comparison.keys == ["quant.observer"]
    assert [figure.key for figure in comparison.figures] == ["seconds", "speed", "psnr_db"]
    assert {figure.key for figure, _ in comparison.same} >= {"ssim", "judge", "peak_memory_bytes"}
    assert [row.keys["quant.observer"] for row in comparison.rows] == ["minmax", "mse", "histogram"]


def test_a_done_run_without_a_figure_differs_from_one_that_has_it(sweep: Path, tmp_path: Path) -> None:
    comparison = compare([sweep / "0", float_run(tmp_path / "float")])
    assert "psnr_db" in [figure.key for figure in comparison.figures]
    assert comparison.rows[1].figures["psnr_db"] is None and comparison.rows[1].figures["speed"] is None


def test_the_page_of_a_sweep(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert door(["report", str(sweep)]) == 0
    assert capsys.readouterr().out == f"page     {sweep}/report.html\n"
    page = Page((sweep / "report.html").read_text(encoding="utf-8"))
    for words in (
        "2 done, 1 failed.",
        "python -m runner -m quant.observer=minmax,mse,histogram",
        "ValueError: transformer_blocks.3.attn1.to_q: scale 3.1e-9 underflows",
        "The same in all: step: 70.2 ms;",
        "PSNR to float against speed of a step",
        "mse",
        "1.25× 35.1 dB",
        PROMPTS[0],
    ):
        assert words in page.text, words
    links = [link for link in page.links if link != "data:,"]
    for link in links:
        parts = urlparse(link)
        assert not parts.scheme and (sweep / unquote(parts.path)).is_file(), link
    assert [f"{n}/report.html" in links for n in range(3)] == [True] * 3, "each run's page is written, too"
    results = [link for link in links if "/sample/" in link]
    assert len(results) == 4 and len(set(results)) == 4


def test_a_reference_that_runs_share_is_shown_once(sweep: Path) -> None:
    html = write_many([sweep / "0", sweep / "1"], sweep / "page.html", "two").read_text(encoding="utf-8")
    first = re.findall(r'src="([^"]+)"', re.search(rf"<figcaption>{PROMPTS[0]}.*?</figure>", html, re.DOTALL)[0])
    assert first == ["0/dump/videos/prompt-001.mp4", *(f"{n}/sample/videos/prompt-000.mp4" for n in (0, 1))]


def test_the_same_runs_make_the_same_bytes(sweep: Path) -> None:
    first = write_many(members(sweep), sweep / "page.html", "a").read_bytes()
    assert write_many(members(sweep), sweep / "page.html", "a").read_bytes() == first


def test_one_run_is_its_own_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", PROMPTS[:1])
    assert door(["report", str(run)]) == 0
    assert "Cost and gain" in (run / "report.html").read_text(encoding="utf-8")


def test_runs_of_anywhere_side_by_side(sweep: Path, tmp_path: Path) -> None:
    page = tmp_path / "elsewhere.html"
    assert door(["report", str(sweep / "0"), str(sweep), "--output", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert "3 runs" in text, "a run that is named twice is one run"
    assert unquote(f"{sweep.name}/0/report.html") in unquote(text)


def test_csv(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert door(["report", str(sweep), "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["state"] for row in rows] == ["done", "done", "failed"]
    assert [row["psnr_db"] for row in rows] == ["31.42", "35.1", ""]
    assert rows[1]["quant.observer"] == "mse" and rows[1]["ssim"] == "0.9712"
    assert rows[2]["cause"].startswith("ValueError: ") and not (sweep / "report.html").exists()


def test_json(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = read_json(sweep / "0/sample/metrics.json")
    metrics["summary"]["psnr_db"] = {"median": None, "p5": None}
    write_json(sweep / "0/sample/metrics.json", metrics)
    assert door(["report", str(sweep), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[0]["figures"]["psnr_db"] == "inf" and rows[1]["figures"]["speed"] == 1.25
    assert rows[0]["differs"]["quant.observer"] == "minmax" and rows[0]["run"] == str(sweep / "0")


@pytest.mark.parametrize("content", ["", "[]", '{"jobs": 3}'])
def test_no_run_is_refused(tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert door(["report", str(tmp_path)]) == 2
    assert f"refused: {tmp_path} is no run folder and no sweep's" in capsys.readouterr().err
    (tmp_path / "sweep.json").write_text(content)
    assert door(["report", str(tmp_path)]) == 2
    assert "sweep.json cannot be read" in capsys.readouterr().err


def test_ticks_are_round_and_span() -> None:
    assert ticks([1.1, 1.3], str) == [1.1, 1.15, 1.2, 1.25, 1.3]
    assert ticks([0.0, 97.0], str) == [0.0, 50.0, 100.0]
    assert ticks([1.1, 1.3], lambda value: f"{value:.1f}") == [1.1, 1.2, 1.3], "1.15 would be written as 1.1 or 1.2"
    assert ticks([0.9963, 0.9968], wording.digits) == [0.996, 0.997]
    for values in ([3.0, 3.0], [0.0, 0.0], [-2.5, 0.3], [1e9, 1.1e9]):
        found = ticks(values, str)
        assert found[0] <= min(values) and found[-1] >= max(values) and 2 <= len(found) <= 7


def test_points_lie_where_they_should() -> None:
    points = [Point("a", 1, 10), Point("b", 2, 20), Point("c", 3, float("inf"))]
    svg = scatter(points, Axis("x <1>", str), Axis("y", wording.decibel), "plot")
    (ax, ay), (bx, by) = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', svg)
    assert float(ax) < float(bx) and float(ay) > float(by), "up is more"
    assert "y against x &lt;1&gt;" in svg and "c" not in re.findall(r'class="label"[^>]*>(.*?)<', svg)
    assert scatter([], Axis("x", str), Axis("y", str), "plot") == ""


def test_labels_do_not_stand_on_each_other() -> None:
    points = [Point(f"2026-11-21_16-04-13/{n}", 1 + n / 50, 10) for n in range(4)]
    svg = scatter([*points, Point("far", 2, 20)], Axis("x", str), Axis("y", str), "plot")
    found = re.findall(r'class="label" x="([\d.]+)" y="([\d.]+)">(.*?)<', svg)
    boxes = [(float(x), float(y), float(x) + 6.2 * len(label)) for x, y, label in found]
    assert len(boxes) == 5
    for place, (left, base, right) in enumerate(boxes):
        assert 0 <= left and right <= 360
        for other in boxes[:place]:
            assert right <= other[0] or other[2] <= left or abs(base - other[1]) >= 12


def test_references_that_differ_stand_before_their_own(sweep: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other")
    html = write_many([sweep / "0", sweep / "1", other], tmp_path / "page.html", "three").read_text(encoding="utf-8")
    first = re.search(rf"<figcaption>{PROMPTS[0]}.*?</figure>", html, re.DOTALL)[0]
    labels = re.findall(r"<small>(.*?)</small>", first)
    assert [label.partition(":")[0] for label in labels] == ["float of 0", "0", "1", "float of other", "other"]


def test_where_a_run_was_put_is_no_difference(tmp_path: Path) -> None:
    for name in ("one", "two"):
        told = read_json(make_run(tmp_path / name) / "run.json")
        told["config"]["output"] = f"/somewhere/{name}"
        write_json(tmp_path / name / "run.json", told)
    assert "output" not in compare([tmp_path / "one", tmp_path / "two"]).keys
