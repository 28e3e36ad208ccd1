"""Prompts, sizes and masks against what the unmodified reference computes (tests/data/opensora12/utils.json)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from runner.model import opensora12
from runner.model.opensora12 import (
    append_score,
    apply_mask_strategy,
    dframe_to_frame,
    extract_json,
    find_nearest_point,
    frame_count,
    image_size,
    latent_sizes,
    parse_mask_strategy,
    save_path,
    sizes,
    split_merge,
    strategy_text,
    text_preprocessing,
)
from runner.model.opensora12.prompts import prepare_prompt, split_prompt

DATA = Path(__file__).parents[2] / "data/opensora12"
CASES = json.loads((DATA / "utils.json").read_text())


def cases(name):
    return pytest.mark.parametrize("case", CASES[name], ids=lambda case: str(next(iter(case.values())))[:30])


@cases("prompts")
def test_cleaning(case):
    assert text_preprocessing(case["inp"]) == case["text_preprocessing"]


@cases("append_score")
def test_scores(case):
    assert append_score(case["prompt"], case["aes"], case["flow"], case["camera_motion"]) == case["out"]


@cases("split_merge")
def test_parts(case):
    found = split_merge(case["inp"], len(case["per_loop"]))
    assert found._asdict() == {key: case[key] for key in found._fields}


@cases("extract_json")
def test_json_in_the_prompt(case):
    assert list(extract_json(case["inp"])) == case["out"]


@cases("save_path")
def test_names_of_files(case):
    assert save_path("d", **case["args"]) == case["out"]


@cases("parse_mask_strategy")
def test_parsed_strategies(case):
    assert parse_mask_strategy(case["inp"]) == case["out"]


@cases("find_nearest_point")
def test_nearest_points(case):
    assert find_nearest_point(case["value"], case["point"], case["max_value"]) == case["out"]


@cases("apply_mask_strategy")
def test_applied_strategies(case):
    z = torch.zeros(1, 1, case["z_frames"], 1, 1)
    refs = [
        (torch.arange(1.0, frames + 1) + 100 * number).view(1, -1, 1, 1)
        for number, frames in enumerate(case["ref_frames"])
    ]
    filled, mask = apply_mask_strategy(z, [refs], [case["mask_strategy"]], case["loop_i"], case["align"])
    assert filled.flatten().tolist() == case["z"] and not z.any()
    assert mask.tolist() == [case["mask"]] and mask.dtype == torch.float32


@cases("latent_sizes")
def test_latent_sizes(case):
    sides = (case["frames"], case["height"], case["width"], case["micro_frame_size"])
    assert list(latent_sizes(*sides)) == case["out"]


def test_frames_of_latents():
    assert {str(n): dframe_to_frame(n) for n in (0, 5, 10, 15)} == CASES["dframe_to_frame"]
    with pytest.raises(ValueError, match="12 latent frames are no whole chunks of 5"):
        dframe_to_frame(12)


def test_tables():
    listed = {name: {ratio: list(size) for ratio, size in table.items()} for name, table in sizes.ASPECT_TABLES.items()}
    assert listed == CASES["aspect_tables"]
    assert sizes.ASPECT_RATIO_MAP == CASES["aspect_ratio_map"]
    assert sizes.NUM_PIXELS == CASES["num_pixels"]
    assert sizes.NUM_FRAMES_MAP_UPSTREAM == CASES["num_frames_map_upstream"]
    assert sizes.NUM_FRAMES_MAP_ENFLAME == CASES["num_frames_map_enflame"]


def test_the_port_has_two_sizes_of_its_own():
    ours = {
        "720p 1:1": list(image_size("720p", "1:1", "enflame")),
        **{k: frame_count(k, "enflame") for k in ("2s", "1x")},
    }
    assert ours == CASES["enflame_overrides"]
    assert image_size("720p", "1:1") == (960, 960) and frame_count("2s") == 51
    assert image_size("144p", "9:16", "enflame") == (144, 256) and frame_count("40") == frame_count(40) == 40


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: image_size("145p", "9:16"), "resolution is '145p'; it must be one of 144p, 256, 240p"),
        (lambda: image_size("144p", "16:10"), "aspect_ratio is '16:10'; 144p has 3:8, 9:21"),
        (lambda: image_size("2880", "1:1"), "2880 has none: give height and width"),
        (lambda: frame_count("3s"), "num_frames is '3s'; it must be a number or one of 1x, 2x"),
        (lambda: frame_count(0), "it must be at least 1"),
        (lambda: parse_mask_strategy("0,a"), "'0,a' is not of the form loop,reference,reference_start"),
        (lambda: parse_mask_strategy("0,0,0,0,1,0,7"), "it has 7 values"),
        (lambda: parse_mask_strategy("0;0,0,0,0,1,1.5"), "'0,0,0,0,1,1.5': loop and reference are 0 or more"),
        (lambda: strategy_text([{"start": 1}]), "expected keys among loop, reference"),
        (lambda: split_prompt("|1| b"), "must begin with"),
        (lambda: split_prompt("a |0| b"), "must begin with"),
        (lambda: extract_json("a {b}"), "no JSON"),
        (lambda: extract_json('a {"reference": "b"}'), "reference: its JSON may hold texts under reference_path and"),
    ],
)
def test_what_cannot_be_meant_is_refused(call, says):
    with pytest.raises(ValueError, match=says.replace("|", r"\|")):
        call()


@pytest.mark.parametrize(
    ("strategy", "says"),
    [("0,1", "asks for reference 1 of 1"), ("0,0,0,7", "target frame 7 of 5"), ("0,0,-3", "reference frame -3 of 2")],
)
def test_a_strategy_that_points_outside_is_refused(strategy, says):
    with pytest.raises(ValueError, match=says):
        apply_mask_strategy(torch.zeros(1, 4, 5, 1, 1), [[torch.zeros(4, 2, 1, 1)]], [strategy], 0)


def test_no_strategy_is_no_mask():
    z = torch.randn(2, 4, 5, 2, 2)
    assert apply_mask_strategy(z, [[], []], None, 0) == (z, None)


def test_a_strategy_can_be_written_with_names():
    assert strategy_text([{}, {"reference": 1, "target_start": -1}]) == "0,0,0,0,1,0.0;0,1,0,-1,1,0.0"
    assert strategy_text("0;0,1,0,-1,1") == "0;0,1,0,-1,1" and strategy_text(None) == ""


def test_a_prompt_is_scored_and_cleaned_part_by_part():
    assert prepare_prompt("|0| A Calm sea |1|A stormy SEA", aes=6.5) == (
        "|0|a calm sea aesthetic score: 6.5.|1|a stormy sea aesthetic score: 6.5."
    )
    assert prepare_prompt("A Calm  sea", flow=2, camera_motion="pan left", clean=False) == (
        "a calm  sea motion score: 2.0. camera motion: pan left."
    )


def test_the_desk_can_ask_without_torch():
    code = (
        "import sys, runner.model.opensora12 as room; room.split_merge('a'); room.image_size('144p', '1:1');"
        "room.parse_mask_strategy('0'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert all(getattr(opensora12, name) for name in opensora12.__all__)
    with pytest.raises(AttributeError, match="'nothing'"):
        _ = opensora12.nothing
