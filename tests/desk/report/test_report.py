import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
from desk.make_run import PROMPTS, draw, failed_run, float_run, make_run, read_json, write_json
from support.pages import Page

from runner.config import wording
from runner.desk.report import Run, read_run, write
from runner.desk.report.ledger import verdict
from runner.generation.media import save_clip


def page_of(folder: Path) -> Page:
    return Page(write(folder).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "finished")


@pytest.fixture
def run_folder(finished: Path, tmp_path: Path) -> Path:
    """A finished run to spoil."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_finished_run(run_folder: Path) -> None:
    text = page_of(run_folder).text
    for words in (
        "A W8A8 step is 1.17× as fast as a float one; 31.4 dB median PSNR, −0.6 points by the judge.",
        "Weights: the embedded little world , not a released checkpoint.",
        "of linear FLOPs in int8 81.5%",
        "82.1 ms 80.5 ms to 84.6 ms, n = 25 70.2 ms 68.8 ms to 72.3 ms, n = 25 1.17× as fast 1.14× to 1.20×",
        "1.51 TFLOP none in int8 1.23 TFLOP in int8 38,400 int8 matrix products 81.5%",
        "Transformer weights on disk 41.2 kB 30.5 kB 0.74×",
        "Peak memory 812 MB while recording 798 MB",
        "31.4 dB 5% of clips below 27.3 dB",
        "97.9 97.3 −0.6 points [−1.8, +0.6]",
        "quantize ran builds on calibrate W8A8 weights and description 2.10 s",
        "dump reused same as an earlier run",
        "search skipped no search",
        "13 of 85 linear layers stayed in float",
        "python -m runner +recipe=osp12_w8a8 'prompts.text=[a red circle, a blue square]'",
        "0123456789abcdef0123456789abcdef01234567",
        "torch 2.6.0, diffusers 0.32.0",
        "quant.scheme w8a8 by the recipe",
        "sample.save true",
    ):
        assert words in text, words
    assert "missing" not in text


def test_everything_it_refers_to_is_in_the_folder(run_folder: Path) -> None:
    moved = run_folder.rename(run_folder.parent / "moved & renamed #2")
    page = page_of(moved)
    links = [link for link in page.links if link != "data:,"]
    assert len(links) > 20
    for link in links:
        parts = urlparse(link)
        assert not parts.scheme and not parts.netloc and not link.startswith("/"), link
        assert (moved / unquote(parts.path)).is_file(), link
    assert "quantize/quant_model_weight_w8a8.safetensors" in links and "sample/contact_sheet.png" in links


def test_pairs_are_told_by_prompt_and_seed(run_folder: Path) -> None:
    run = read_run(run_folder)
    assert [clip.prompt for clip in run.clips] == PROMPTS
    assert run.clips[0].reference == "dump/videos/prompt-001.mp4", "000 is a calibration prompt"
    assert run.clips[0].result == "sample/videos/prompt-000.mp4"
    assert run.clips[0].figures["judge_float"] == 1.0


def test_single_frames_are_shown_as_pictures(run_folder: Path) -> None:
    for path in run_folder.glob("*/videos/*.mp4"):
        save_clip(draw(PROMPTS[0], frames=1), path.with_suffix(""), fps=8)
        path.unlink()
    html = write(run_folder).read_text(encoding="utf-8")
    assert "<video" not in html and html.count("<img") == 2 * len(PROMPTS) + 1


def test_text_of_users_is_escaped(run_folder: Path) -> None:
    evil = '<script>alert("x")</script> & "quotes"'
    prompts = read_json(run_folder / "sample/prompts.json")
    prompts[0]["prompt"] = evil
    write_json(run_folder / "sample/prompts.json", prompts)
    write_json(run_folder / "run.json", {**read_json(run_folder / "run.json"), "name": evil})
    page = page_of(run_folder)
    assert evil in page.text and "<script>alert" not in (run_folder / "report.html").read_text(encoding="utf-8")


def test_worst_layers_are_drawn_and_said(run_folder: Path) -> None:
    html = write(run_folder).read_text(encoding="utf-8")
    plot = re.search(r'<svg class="plot".*?</svg>', html, re.DOTALL)
    assert plot
    names = re.findall(r'<text x="0" y="\d+">(.*?)</text>', plot[0])
    rows = [row for row in read_json(run_folder / "quantize/layers.json") if row["quantized"]]
    assert names == [row["layer"] for row in rows[:12]]
    lengths = [float(width) for width in re.findall(r'class="length" .*?width="([\d.]+)%"', plot[0])]
    best = max(row["snr_db"] for row in rows)
    assert lengths == [pytest.approx(100 * row["snr_db"] / best, abs=0.01) for row in rows[:12]]
    description = re.search(r"<desc.*?>(.*?)</desc>", plot[0], re.DOTALL)
    assert description and all(name in description[1] for name in names)
    assert html.count('<tr><th scope="row">transformer_blocks.') == 84, "the whole table is there, too"


def test_a_float_run(tmp_path: Path) -> None:
    page = page_of(float_run(tmp_path / "run"))
    assert "A float run: 2 clips from the model as it is, nothing quantized." in page.text
    assert "3.12 s" in page.text and "judge 100" in page.text
    assert not {"W8A8", "int8", "PSNR", "missing", "not made", "∞"} & set(re.split(r"[ ,.:]", page.text))
    assert [link for link in page.links if link.endswith(".mp4") and link.startswith("sample")]


def test_a_failed_run_says_where_and_why(tmp_path: Path) -> None:
    page = page_of(failed_run(tmp_path / "run"))
    assert "Failed in quantize: ValueError: transformer_blocks.3.attn1.to_q: scale 3.1e-9 underflows" in page.text
    assert "use model.dtype=bf16" in page.text
    assert "quantize failed" in page.text and "sample waiting" in page.text and "dump reused" in page.text
    assert "no W8A8 clips were made" in page.text
    assert "missing" not in page.text, "what a failed run did not come to is not missing"
    assert "traceback.txt" in page.links and "dump/videos/prompt-000.mp4" in page.links


def test_a_run_under_way(run_folder: Path) -> None:
    write_json(run_folder / "status.json", {"state": "running", "stage": "sample"})
    shutil.rmtree(run_folder / "sample")
    assert "Under way: sample is running." in page_of(run_folder).text
    (run_folder / "status.json").unlink()
    assert "Planned, not started." in page_of(run_folder).text


NONSENSE = '{"summary": 3, "ledger": [], "config": [], "stages": {}, "prompts": 7, "command": 1, "machine": 2}'
OPTIONAL = (
    "run.json",
    "plan.json",
    "provenance.json",
    "dump",
    "dump/prompts.json",
    "quantize",
    "quantize/layers.json",
    "sample",
    "sample/videos",
    "sample/prompts.json",
    "sample/metrics.json",
    "sample/contact_sheet.png",
    "measurements",
    "measurements/sample.json",
)


@pytest.mark.parametrize("path", OPTIONAL)
def test_any_piece_may_be_missing(run_folder: Path, path: str) -> None:
    gone = run_folder / path
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    text = page_of(run_folder).text
    said = {"run.json", "plan.json", "provenance.json", "quantize/layers.json", "sample/metrics.json"}
    if path in said | {"measurements/sample.json", "sample/prompts.json"}:
        assert f"{path} is not there." in text
    if path == "sample/videos":
        assert text.count("float a ") == 4


@pytest.mark.parametrize("path", [path for path in OPTIONAL if path.endswith(".json")])
@pytest.mark.parametrize("content", ["", "{", "[1, 2]", NONSENSE, "null"])
def test_any_file_may_be_broken(run_folder: Path, path: str, content: str) -> None:
    (run_folder / path).write_text(content)
    text = page_of(run_folder).text
    if content in ("", "{"):
        assert f"{path} cannot be read" in text


def test_nonsense_inside_is_not_believed(run_folder: Path) -> None:
    metrics = read_json(run_folder / "sample/metrics.json")
    metrics["summary"] = {"psnr_db": "high", "judge": {"difference": True}, "ssim": {"median": float("nan")}}
    metrics["ledger"]["int8_share"] = None
    (run_folder / "sample/metrics.json").write_text(json.dumps(metrics))
    write_json(run_folder / "measurements/sample.json", {"step_seconds": 3, "generation": [], "machine": None})
    assert "nan" not in page_of(run_folder).text.lower().split()


def test_identical_clips_have_no_number(run_folder: Path) -> None:
    metrics = read_json(run_folder / "sample/metrics.json")
    for row in metrics["prompts"]:
        row["psnr_db"] = None
    metrics["summary"]["psnr_db"] = {"median": None, "p5": None}
    write_json(run_folder / "sample/metrics.json", metrics)
    text = page_of(run_folder).text
    assert text.count("PSNR identical") == 4 and "∞ median PSNR" in text


def spoiled(folder: Path, change: Callable[[dict], None]) -> Run:
    measured = read_json(folder / "measurements/sample.json")
    change(measured["step_seconds"])
    write_json(folder / "measurements/sample.json", measured)
    return read_run(folder)


def test_the_verdict_claims_no_more_than_was_measured(run_folder: Path) -> None:
    slower = {"median": 0.5, "p25": 0.45, "p75": 0.55}
    assert "takes 2.00× as long as a float one" in verdict(spoiled(run_folder, lambda s: s.update(ratio=slower)))
    undecided = {"median": 1.05, "p25": 0.95, "p75": 1.1}
    assert "takes about as long as a float one" in verdict(spoiled(run_folder, lambda s: s.update(ratio=undecided)))
    assert verdict(spoiled(run_folder, lambda s: s.pop("ratio"))).startswith("31.4\u202fdB median PSNR")
    (run_folder / "sample/metrics.json").unlink()
    assert verdict(read_run(run_folder)) == "Done: W8A8. Nothing was compared with float."


def test_weights_of_a_checkpoint_that_is_elsewhere_now(run_folder: Path) -> None:
    shutil.rmtree(run_folder / "weights")
    run = read_json(run_folder / "run.json")
    run["checkpoint"] = {"label": "checkpoint of somebody", "embedded": False, "path": "somebody/hub-id"}
    write_json(run_folder / "run.json", run)
    text = page_of(run_folder).text
    assert "Weights: checkpoint of somebody" in text and "little world" not in text
    assert "Transformer weights" not in text


def test_many_files_are_folded(run_folder: Path) -> None:
    page = page_of(run_folder)
    assert "calls/ 30 files, 12.0 kB" in page.text and "and 6 more" in page.text
    assert sum(link.startswith("dump/prompt-000/calls/") for link in page.links) == 24


def test_writing_again_changes_nothing(run_folder: Path) -> None:
    first = write(run_folder).read_bytes()
    assert write(run_folder).read_bytes() == first
    assert not list(run_folder.glob(".report*"))
    with pytest.raises(FileNotFoundError, match="not a run folder"):
        write(run_folder / "nowhere")


def test_the_report_needs_no_torch() -> None:
    code = "import sys, runner.desk.report; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3]).returncode == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (wording.seconds(0.0821), "82.1 ms"),
        (wording.seconds(0.9999), "1.00 s"),
        (wording.seconds(59.96), "1 min 00 s"),
        (wording.seconds(3725), "1 h 02 min"),
        (wording.seconds(None), "–"),
        (wording.size(999), "999 B"),
        (wording.size(999_600), "1.00 MB"),
        (wording.size(17_000_000_000), "17.0 GB"),
        (wording.flops(1.5e15), "1.50 PFLOP"),
        (wording.points(-0.0004), "0.0"),
        (wording.points(0.012), "+1.2"),
        (wording.points(-1.5, 100), "−1.5"),
        (wording.decibel(-3.14), "−3.1 dB"),
        (wording.decibel(float("inf")), "∞"),
        (wording.digits(0.04131), "0.0413"),
        (wording.digits(123456), "123,456"),
        (wording.count(38_400.0), "38,400"),
    ],
)
def test_numbers_read_well(text: str, expected: str) -> None:
    assert text.replace("\u202f", " ") == expected


def with_schedule(folder: Path) -> Path:
    """The run as one that sampled 3 steps searched in 6."""
    described = read_json(folder / "run.json")
    described["config"]["recording"] = {"steps": 6}
    described["config"]["sampler"] |= {"search": "recording", "num_sampling_steps": 3}
    write_json(folder / "run.json", described)
    plan = read_json(folder / "plan.json")
    rows = {row["stage"]: row for row in plan["stages"]}
    searched = {**rows["dump"], "stage": "search-schedule", "action": "run"}
    plan["stages"] = [{**rows["dump"], "stage": "dump-schedule"}, searched, rows["sample"]]
    write_json(folder / "plan.json", plan)
    (folder / "dump").rename(folder / "dump-schedule")
    tried = [
        {"name": "errors as they point", "timesteps": [999.0, 600.0, 99.5], "predicted": 0.0512, "error": 0.0623},
        {"name": "uniform", "timesteps": [999.0, 500.0, 1.0], "predicted": None, "error": 0.111},
    ]
    write_json(folder / "search-schedule/search.json", {
        "chosen": "errors as they point", "uniform": [999.0, 500.0, 1.0], "tried": tried, "forwards": 159,
        "recorded": {"timesteps": [999.0, 800.0, 600.0, 400.0, 99.5, 1.0], "gains": [0.1] * 7, "prompts": 2},
    })  # fmt: skip
    return folder


def test_a_searched_schedule_stands_beside_the_solver_s_own(run_folder: Path) -> None:
    text = page_of(with_schedule(run_folder)).text
    for words in (
        "3 steps in place of 6; a W8A8 step is 1.17× as fast as a float one; 31.4 dB median PSNR",
        "float and 3 steps + W8A8",
        "3 timesteps searched in 6 recorded ones, on 2 prompts, beside those that the solver takes by itself",
        "The search evaluated the model 159 times.",
        "errors as they point chosen 0.0512 0.0623",
        "uniform – 0.111",
    ):
        assert words in text, words
    html = (run_folder / "report.html").read_text()
    svg = re.search(r'<svg class="scatter".*?</svg>', html, re.DOTALL)
    assert svg is not None and svg[0].count("<polyline") == 2 and svg[0].count("<circle") == 3
    assert 'src="dump-schedule/videos/prompt-001.mp4"' in html and 'src="sample/videos/prompt-000.mp4"' in html
    searched = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', svg[0])
    own = [point.split(",") for point in re.findall(r'class="under" points="([^"]+)"', svg[0])[0].split()]
    assert [x for x, _ in searched] == [x for x, _ in own] and list(searched[0]) == own[0]
    assert float(searched[1][1]) < float(own[1][1]), "up is the larger timestep"


def test_align_your_steps_stands_beside_the_solver_s_own(run_folder: Path) -> None:
    with_schedule(run_folder)
    name = "Align Your Steps"
    tried = [{"name": name, "timesteps": [999.0, 600.0, 1.0], "predicted": None, "error": None}]
    found = {"search": "ays", "chosen": name, "uniform": [999.0, 500.0, 1.0], "tried": tried, "forwards": 110}
    write_json(run_folder / "search-schedule/search.json", found)
    assert "3 timesteps by Align Your Steps, beside those that the solver takes by itself" in page_of(run_folder).text
    write_json(run_folder / "search-schedule/search.json", {"search": "ays"})  # cut short
    assert "by Align Your Steps" not in page_of(run_folder).text
