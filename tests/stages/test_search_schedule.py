"""The search of a schedule, from the recording to clips that follow what was found, on a small random checkpoint."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from stages.cut_off import Again, calls

from runner.metrics.video import relative_error
from runner.model.osp12.transformer import OSP12Transformer
from runner.recording.recording import Recording
from runner.sampler import probes, schedules

N, K = 16, 5


def run(folder, *arguments):
    command = [sys.executable, "-m", "runner", *arguments, f"output={folder}", "model.dtype=fp32"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    name = next((a.partition("=")[2] for a in arguments if a.startswith("name=")), "osp12_schedule")
    return sorted((folder / name).iterdir())[-1]


@pytest.fixture(scope="module")
def searched(tiny_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("outputs")
    return run(
        folder, "+recipe=osp12_schedule", f"model.checkpoint={tiny_checkpoint}", f"recording.steps={N}",
        f"sampler.num_sampling_steps={K}", f"sampler.save_dir={folder / 'found'}",
    )  # fmt: skip


def read(folder):
    return json.loads((folder / "search-schedule" / "search.json").read_text())


def test_the_schedule_is_the_best_on_paper_that_holds(searched):
    found = read(searched)
    least = min(tried["error"] for tried in found["tried"])
    best = next(tried for tried in found["tried"] if tried["error"] <= 2 * least)
    written = schedules.timesteps(searched / "search-schedule" / schedules.NAME)
    assert found["chosen"] == best["name"] and written == pytest.approx(best["timesteps"], abs=1e-9)
    predicted = [tried["predicted"] for tried in found["tried"][:-1]]
    assert predicted == sorted(predicted) and found["tried"][-1]["name"] == "uniform"
    assert len(written) == K
    assert schedules.read(searched.parent.parent / "found" / schedules.NAME)


def test_forwards_are_counted_and_within_the_plan(searched):
    plan = {stage["stage"]: stage for stage in json.loads((searched / "plan.json").read_text())["stages"]}
    row, found = plan["search-schedule"], read(searched)
    assert row["at_most"] and found["forwards"] <= row["forwards"]
    assert len(found["perturbed"]) == len(probes.places(N)) and 1 < len(found["tried"]) <= probes.TRIED
    perturbed = 4 + sum(4 - gain["node"] // 5 for gain in found["perturbed"])
    assert found["forwards"] == perturbed + K * len(found["tried"])


def test_the_long_recording_keeps_steps_and_nothing_for_a_calibration(searched):
    recording = Recording(searched / "dump-schedule")
    (part,) = recording.parts("trajectory")
    assert len(list(recording.trajectory(part))) == N and not (part / "calls").exists()
    assert not (searched / "dump").exists()


def test_clips_follow_the_schedule_and_are_compared_with_the_long_run(searched, tiny_checkpoint):
    recording = Recording(searched / "dump-schedule")
    metrics = json.loads((searched / "sample" / "metrics.json").read_text())["prompts"]
    for row, part in zip(metrics, recording.parts("text"), strict=True):
        made = load_file(searched / "sample" / f"prompt-{row['index']:03d}" / "latents.safetensors")["latents"]
        assert row["latent_error"] == pytest.approx(relative_error(made, recording.final(part)))
    file = searched / "search-schedule" / schedules.NAME
    again = run(
        searched.parent.parent, "+recipe=osp12_float", f"model.checkpoint={tiny_checkpoint}", "name=given",
        f"sampler.schedule={file}", "sampler.noise=path", f"recording.steps={N}",
    )  # fmt: skip
    for row in metrics:
        name = f"prompt-{row['index']:03d}/latents.safetensors"
        a, b = (load_file(folder / "sample" / name)["latents"] for folder in (searched, again))
        assert torch.equal(a, b)


@pytest.fixture(scope="module")
def aligned(tiny_checkpoint, searched, tmp_path_factory):
    """By Align Your Steps, on the recording and on videos. Those are what the recorded run wrote: any clip of enough
    frames will do."""
    output = tmp_path_factory.mktemp("aligned")
    common = (
        "+recipe=osp12_schedule", f"model.checkpoint={tiny_checkpoint}", "sampler.search=ays", "until=search-schedule",
        "sampler.num_sampling_steps=4", "sampler.monte_carlo_iters=1", f"recording.steps={N}",
    )  # fmt: skip
    videos = searched / "dump-schedule" / "videos"
    return [
        run(output, *common, "name=recorded"),
        run(output, *common, "name=filmed", f"sampler.videos_path={videos}", "sampler.neighbour_type=random"),
    ]


def test_align_your_steps_on_the_recording_or_on_videos(aligned):
    for folder in aligned:
        found = read(folder)
        plan = {stage["stage"]: stage for stage in json.loads((folder / "plan.json").read_text())["stages"]}
        assert found["forwards"] == plan["search-schedule"]["forwards"] == 2 * 11 * 1 * 2
        written = schedules.timesteps(folder / "search-schedule" / schedules.NAME)
        ends = found["uniform"][0], found["uniform"][-1]
        assert (written[0], written[-1]) == pytest.approx(ends) and len(written) == 4
    assert read(aligned[0])["tried"] != read(aligned[1])["tried"]


def test_align_your_steps_goes_on_with_the_steps_that_it_has_moved(aligned, tmp_path):
    for folder in aligned:
        again = Again(folder, tmp_path / folder.parent.name, "search-schedule")
        step = again.planned // 2  # calls: two of four are moved
        with calls(OSP12Transformer, at_most=step + 5) as made:
            assert not again.follow()
        assert len(made) == step + 5
        with calls(OSP12Transformer) as made:
            assert again.follow()
        assert len(made) == step and again.is_as_undisturbed()


def test_a_rectified_flow_is_searched_from_pure_noise_on(tiny_opensora12, tmp_path):
    folder = run(
        tmp_path, "+recipe=opensora12_sample", f"model.checkpoint={tiny_opensora12}", "name=flow",
        "sampler.search=recording", "recording.steps=11", "sampler.num_sampling_steps=4", "sample.compare=true",
        "prompts.text=a boat", "prompts.calibration=a red boat",
    )  # fmt: skip
    found, (row,) = read(folder), json.loads((folder / "sample" / "metrics.json").read_text())["prompts"]
    written = schedules.timesteps(folder / "search-schedule" / schedules.NAME)
    assert written[0] == pytest.approx(1000) and written[-1] > 0 and len(written) == 4
    assert found["perturbed"] and all(gain["gain"] > 0 for gain in found["perturbed"])
    # On weights that are random a velocity hardly turns: few steps come close to many.
    assert row["latent_error"] < 0.5
