"""What is planned, and what changes which key."""

from __future__ import annotations

import copy
import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.config.precedence import leaves
from runner.config.schema import keys as schema_keys
from runner.desk.plan import graph, stages
from runner.store.artifacts import Store
from runner.store.fingerprints import Fingerprints

ALL = {"dump", "calibrate", "quantize", "sample"}

# Which stages another value of a key makes anew. Written down here once more, so that the table cannot change unseen.
EVERYTHING = {
    "seed": 5, "model.ae": "other", "model.model_type": "other", "model.dtype": "fp16",
    "model.num_frames": 13, "model.height": 64, "model.width": 64, "model.fps": 12, "model.batch_size": 2,
    "model.max_sequence_length": 40, "model.template": "{}", "model.negative_prompt": "other",
    "model.clean_caption": False, "model.enable_tiling": True, "model.tile_overlap_factor": 0.5,
    "model.save_memory": True, "sampler.sample_method": "DDIM", "sampler.num_sampling_steps": 4,
    "sampler.guidance_scale": 2.0, "sampler.guidance_batch": "separate", "sampler.noise": "path",
    "hardware.device": "cuda", "hardware.compute": "fp16", "parallel.ulysses": 2,
    "parallel.vae": True, "dump.format": "pth", "prompts.text": ["other"],
    "prompts.calibration": ["other"],
}  # fmt: skip
FROM_CALIBRATE = {"quant.observer": "mse", "quant.include": ["*to_q"], "quant.exclude": []}
FROM_QUANTIZE = {"quant.scheme": "w8a8_dynamic"}
SAMPLE_ALONE = {
    "sample.save": False, "sample.judge": "world", "sample.lpips": "/l", "sample.clip": "/c", "cache.step_start": 1,
    "cache.step_interval": 3, "cache.block_start": 1, "cache.num_blocks": 1,
}  # fmt: skip
NOTHING = {
    "name": "other", "output": "/elsewhere", "show": "plan", "launch": "print", "until": "sample", "redo": ["dump"],
    "model.revision": "main", "model.cache_dir": "/c", "model.keep_float": [], "quant.percentile": 99.0,
    "quant.folder": "/q", "cache.ratio": 1.3, "cache.quality": 0.1, "cache.search": "exhaustive",
    "cache.save_path": "/c", "sampler.neighbour_type": "random",
    "sampler.monte_carlo_iters": 3, "recording.steps": 50, "recording.lags": 3,
    "sampler.save_dir": "/s", "parallel.world_size": 2, "parallel.cfg": True, "parallel.nodes": 2,
    "parallel.master_addr": "here", "parallel.master_port": 1, "hardware.env": {"A": "1"},
    "hardware.offload": True, "hardware.layerwise_casting": True, "dump.folder": "/d",
    "sample.folder": "/s", "timing.warmup": 3, "timing.repeats": 9,
    "timing.benchmark": True,
}  # fmt: skip
EXPECTED = [
    *((key, value, ALL) for key, value in EVERYTHING.items()),
    *((key, value, ALL - {"dump"}) for key, value in FROM_CALIBRATE.items()),
    *((key, value, {"quantize", "sample"}) for key, value in FROM_QUANTIZE.items()),
    *((key, value, {"sample"}) for key, value in SAMPLE_ALONE.items()),
    *((key, value, set()) for key, value in NOTHING.items()),
]
OPENSORA12 = {
    "model.num_frames": 34, "model.height": 64, "model.width": 64, "model.fps": 12, "model.aes": None,
    "model.flow": 3.0, "model.camera_motion": "pan left", "model.loop": 2, "model.condition_frame_length": 10,
    "model.condition_frame_edit": 0.5, "model.align": None, "model.micro_batch_size": 2, "model.micro_frame_size": 8,
    "model.clean_caption": False,
}  # fmt: skip
OPENSORA12_NOTHING = {
    "model.checkpoint_pin": "1", "model.text_encoder_pin": "1", "model.vae2d_pin": "1", "model.vae3d_pin": "1",
    "model.resolution": "360p", "model.aspect_ratio": "1:1", "model.tables": "enflame",
}  # fmt: skip
BY_OTHER_TESTS = {
    "cache.policy",
    "cache.config",
    "sampler.search",
    "sampler.videos_path",
    "recording.steps",
    "prompts.verification",
    "model.checkpoint",
    "model.vae",
    "model.text_encoder",
    "dump.from",
    "sample.compare",
    "sampler.schedule",
    "prompts.references",
    "model.name",
    "prompts.mask_strategy",
}


def plan(config, folder: Path = Path(".")) -> dict[str, graph.PlannedStage]:
    known = Fingerprints(folder / "fingerprints.json")
    return {stage.stage: stage for stage in graph.plan(config, Store(folder / ".store"), known)}


def keys(config) -> dict[str, str]:
    return {name: stage.key for name, stage in plan(config).items() if stage.action != "skip"}


def changed(config, key: str, value):
    other = copy.deepcopy(config)
    section, _, name = key.rpartition(".")
    (other[section] if section else other)[name] = value
    return other


@pytest.mark.parametrize(("key", "value", "expected"), EXPECTED, ids=lambda value: value if type(value) is str else "")
def test_a_key_changes_exactly_when_a_needed_field_does(config, key, value, expected):
    before, after = keys(config), keys(changed(config, key, value))
    assert {stage for stage in before if before[stage] != after[stage]} == expected


def test_the_lists_above_are_complete():
    assert {key for key, _, _ in EXPECTED} | BY_OTHER_TESTS == set(schema_keys("osp12"))
    assert {"model.call", "model.blocks", "model.text_encoder_3"} <= set(stages.GENERATION)
    own = {key for key in schema_keys("opensora12") if key not in schema_keys("osp12")}
    assert own <= {*OPENSORA12, *OPENSORA12_NOTHING, "model.vae2d", "model.vae3d"}


@pytest.mark.parametrize(("key", "value"), [*OPENSORA12.items(), *OPENSORA12_NOTHING.items()])
def test_keys_of_another_model(opensora12, key, value):
    config = opensora12("quant=w8a8").config
    assert plan(config)["dump"].lineage["fields"]["model.name"] == "opensora12"
    before, after = keys(config), keys(changed(config, key, value))
    assert {stage for stage in before if before[stage] != after[stage]} == (ALL if key in OPENSORA12 else set())


def test_names_of_sizes_count_as_the_numbers_that_they_are(opensora12):
    by_name = opensora12("model.resolution=144p", "model.num_frames=2s", "model.tables=enflame").config
    by_number = opensora12("model.height=144", "model.width=256", "model.num_frames=40").config
    assert keys(by_name) == keys(by_number)


def test_a_benchmark_is_a_stage_of_its_own_keys(config):
    config["timing"] |= {"benchmark": True, "warmup": 2, "repeats": 5}
    planned, before = plan(config), keys(config)
    assert planned["benchmark"].needs == ("quantize",)
    assert planned["benchmark"].forwards == 3 * (2 + 2 * 5)  # steps of each warm-up, and of two prompts five times
    after = keys(changed(config, "timing.repeats", 4))
    assert {stage for stage in before if before[stage] != after[stage]} == {"benchmark"}


def test_references_count_by_content(opensora12, tmp_path):
    from PIL import Image

    Image.new("RGB", (8, 8), "red").save(tmp_path / "first.png")
    arguments = (f"prompts.references={tmp_path}/first.png", "prompts.mask_strategy='0'")
    before = keys(opensora12(*arguments).config)
    assert before["sample"] != keys(opensora12().config)["sample"]
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "first.png")
    assert before["sample"] != keys(opensora12(*arguments).config)["sample"]


def test_each_loop_is_a_generation(opensora12):
    config = opensora12("sampler.num_sampling_steps=3", "model.loop=2", "model.num_frames=34").config
    planned = plan(config)
    assert planned["sample"].forwards == planned["dump"].forwards == 3 * 2 * 2


def test_every_key_of_the_schema_is_decided_upon():
    read = {key for stage in stages.STAGES for key in (*stage.fields, *stage.sets.values())}
    decided = {*stages.NO_RESULT, *read}
    assert {key for key in schema_keys() if not key.startswith("prompts.")} == decided
    assert not set(stages.NO_RESULT) & {key for stage in stages.STAGES for key in stage.fields}


def test_percentile_counts_for_its_observer(config):
    chosen = changed(config, "quant.observer", "percentile")
    before, after = keys(chosen), keys(changed(chosen, "quant.percentile", 99.0))
    assert {stage for stage in before if before[stage] != after[stage]} == ALL - {"dump"}


def test_weights_count_by_content_and_not_by_place(config, tmp_path):
    before = keys(config)
    shutil.copytree(Path(config["model"]["checkpoint"]).parent, tmp_path / "copy")
    moved = copy.deepcopy(config)
    moved["model"]["checkpoint"] = str(tmp_path / "copy" / Path(config["model"]["checkpoint"]).name)
    for part in ("vae", "text_encoder"):
        moved["model"][part] = str(tmp_path / "copy" / part)
    assert keys(moved) == before
    (tmp_path / "copy" / "README.md").write_text("words")
    assert keys(moved) == before
    with next((tmp_path / "copy" / "vae").glob("*.safetensors")).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    assert not set(keys(moved).values()) & set(before.values())


def test_hub_ids_count_with_their_revision(config):
    at = changed(config, "model.text_encoder", "google/mt5-xxl")
    assert keys(at)["dump"] != keys(changed(at, "model.revision", "v2"))["dump"]


def test_recorded_calls_of_ones_own_count_by_content(config, tmp_path):
    mine = tmp_path / "mine.pth"
    mine.write_bytes(b"one")
    first = keys(changed(config, "dump.from", str(mine)))
    mine.rename(tmp_path / "renamed.pth")
    assert keys(changed(config, "dump.from", str(tmp_path / "renamed.pth"))) == first
    (tmp_path / "renamed.pth").write_bytes(b"two")
    assert keys(changed(config, "dump.from", str(tmp_path / "renamed.pth")))["dump"] != first["dump"]


def test_a_schedule_counts_by_its_entries(config, tmp_path):
    file, before = tmp_path / "a.txt", keys(config)
    file.write_text("[0.0, 0.5, 0.999]")
    with_one = keys(changed(config, "sampler.schedule", str(file)))
    assert not set(with_one.values()) & set(before.values())
    (tmp_path / "b.txt").write_text("[0.0,\n 0.50, 0.999]")
    assert keys(changed(config, "sampler.schedule", str(tmp_path / "b.txt"))) == with_one
    file.write_text("[0.0, 0.6, 0.999]")
    assert keys(changed(config, "sampler.schedule", str(file)))["dump"] != with_one["dump"]


def test_a_cache_configuration_counts_by_its_content(config, tmp_path):
    applied = changed(config, "cache.policy", "dit_cache")
    theirs = {"cache_step_start": 1, "cache_step_interval": 2, "cache_block_start": 0, "cache_num_blocks": 1}
    mindie = {"step_start": 1, "step_interval": 2, "block_start": 0, "block_end": 1}
    found = []
    for name, content in (("a", theirs), ("b", mindie), ("c", {**theirs, "cache_step_start": 2})):
        (tmp_path / name).write_text(json.dumps(content))
        found.append(keys(changed(applied, "cache.config", str(tmp_path / name))))
    assert found[0] == found[1]
    assert {stage for stage in found[0] if found[0][stage] != found[2][stage]} == {"sample"}


def searching_a_cache(config):
    return changed(changed(config, "cache.policy", "dit_cache"), "cache.ratio", 1.3)


def test_a_search_of_a_cache_has_a_recording_and_prompts_of_its_own(config):
    rows = plan(searching_a_cache(config))
    assert rows["search-cache"].needs == ("dump", "quantize") and "search-cache" in rows["sample"].needs
    assert set(rows["dump"].lineage["prompts"]) == {"calibration", "verification", "text"}
    assert rows["search-cache"].forwards == 6 * 3 and rows["search-cache"].at_most
    config["quant"]["scheme"] = "none"
    rows = plan(searching_a_cache(config))
    assert rows["search-cache"].needs == ("dump",) and rows["calibrate"].action == "skip"


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("cache.ratio", 1.5, {"search-cache", "sample"}),
        ("cache.policy", "adaptive", {"search-cache", "sample"}),
        ("cache.quality", 0.1, {"search-cache", "sample"}),
        ("recording.lags", 3, {"dump", "calibrate", "quantize", "search-cache", "sample"}),
        ("cache.search", "exhaustive", {"search-cache", "sample"}),
        ("prompts.verification", ["other"], {"dump", "calibrate", "quantize", "search-cache", "sample"}),
    ],
)
def test_what_a_search_of_a_cache_depends_on(config, key, value, expected):
    config = searching_a_cache(config)
    config["sampler"]["num_sampling_steps"] = 20  # which exhaustive finds enough
    before, after = keys(config), keys(changed(config, key, value))
    assert {stage for stage in before if before[stage] != after[stage]} == expected


def test_another_machine_searches_anew(config, monkeypatch):
    config = searching_a_cache(config)
    before = keys(config)
    monkeypatch.setattr(graph.machine, "identity", lambda: "another")
    after = keys(config)
    assert {stage for stage in before if before[stage] != after[stage]} == {"search-cache", "sample"}


def test_the_steps_of_a_recording_count_where_noise_follows_it(config):
    chosen = changed(config, "sampler.noise", "path")
    before, after = keys(chosen), keys(changed(chosen, "recording.steps", 50))
    assert {stage for stage in before if before[stage] != after[stage]} == ALL


def test_torch_counts_by_its_release_line(config, monkeypatch):
    before = keys(config)
    monkeypatch.setattr(graph.metadata, "version", lambda package: "2.99.1+cpu")
    another = keys(config)
    monkeypatch.setattr(graph.metadata, "version", lambda package: "2.99.7")
    assert keys(config) == another and not set(another.values()) & set(before.values())


def test_a_new_version_of_a_stage_makes_it_and_what_builds_on_it_anew(config, monkeypatch):
    before = keys(config)
    from dataclasses import replace

    raised = tuple(replace(s, version=s.version + 1) if s.name == "calibrate" else s for s in stages.STAGES)
    monkeypatch.setattr(graph, "STAGES", raised)
    after = keys(config)
    assert {stage for stage in before if before[stage] != after[stage]} == {"calibrate", "quantize", "sample"}


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(), st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists)))
def test_digest_knows_content_alone(lineage):
    shuffled = dict(reversed(lineage.items()))
    assert graph.digest(lineage) == graph.digest(shuffled) == graph.digest(json.loads(json.dumps(lineage)))
    assert graph.digest(lineage) != graph.digest({**lineage, "one more": 1})
    assert len(graph.digest(lineage)) == 16


def test_key_does_not_hang_on_how_it_was_said(checked):
    Path("prompts.txt").write_text("a cat\n\na dog\n")
    said = (
        ("+recipe=osp12_w8a8", "prompts.text=prompts.txt"),
        ("quant=w8a8", "prompts.text=[a cat, a dog]"),
        ("prompts.text=[a cat, a dog]", "quant.scheme=w8a8", "name=other", "timing.repeats=2"),
    )
    first, *others = (keys(checked(*arguments).config) for arguments in said)
    assert all(other == first for other in others)


def test_a_keys_value_on_this_machine_is_stable(config):
    assert keys(config) == keys(copy.deepcopy(config)) == keys(json.loads(json.dumps(config)))


# which stages


def actions(config) -> dict[str, str]:
    return {name: stage.action for name, stage in plan(config).items()}


def test_w8a8_runs_all_but_search(config):
    assert actions(config) == {
        "dump-schedule": "skip", "search-schedule": "skip", "dump": "run", "calibrate": "run", "quantize": "run",
        "search-cache": "skip", "benchmark": "skip", "sample": "run",
    }  # fmt: skip
    assert {name: stage.needs for name, stage in plan(config).items()} == {
        "dump-schedule": (), "search-schedule": (), "dump": (), "calibrate": ("dump",),
        "quantize": ("dump", "calibrate"), "search-cache": (), "benchmark": (), "sample": ("dump", "quantize"),
    }  # fmt: skip


def searching_a_schedule(config):
    return changed(config, "sampler.search", "recording")


def test_a_stage_may_stand_twice_with_another_number_of_steps(config):
    rows = plan(searching_a_schedule(config))
    assert [name for name, stage in rows.items() if stage.action == "run"] == [
        "dump-schedule", "search-schedule", "dump", "calibrate", "quantize", "sample",
    ]  # fmt: skip
    long, short = rows["dump-schedule"], rows["dump"]
    assert long.does == short.does == "dump" and long.key != short.key
    assert long.lineage["fields"]["sampler.num_sampling_steps"] == 100 and long.forwards == 4 * 100
    assert short.lineage["fields"]["sampler.num_sampling_steps"] == 3 and short.forwards == 3
    assert set(long.lineage["prompts"]) == {"trajectory", "verification", "text"}
    assert "search-schedule" in short.needs and set(short.lineage["prompts"]) == {"calibration"}


def test_the_longer_recording_counts_for_all_that_follows_it(config):
    config = searching_a_schedule(config)
    before, after = keys(config), keys(changed(config, "recording.steps", 60))
    assert {stage for stage in before if before[stage] != after[stage]} == set(before)


def test_plain_sampling_is_one_stage(checked):
    config = checked("+recipe=osp12_float").config
    assert [name for name, action in actions(config).items() if action == "run"] == ["sample"]


def test_float_compared_with_itself_needs_the_reference(config):
    config["quant"]["scheme"] = "none"
    assert [name for name, action in actions(config).items() if action == "run"] == ["dump", "sample"]
    assert plan(config)["dump"].lineage["prompts"] == {"text": ["a red boat", "a blue house"]}


def test_quantized_without_comparison_records_the_calibration_prompts_alone(config):
    config["sample"]["compare"] = False
    assert plan(config)["dump"].lineage["prompts"] == {"calibration": ["a green tree"]}


def test_stored_stages_are_reused_and_damaged_ones_are_not(config):
    store = Store(Path(".store"))
    for stage in ("dump", "calibrate"):
        draft = store.draft(stage, keys(config)[stage])
        (draft / "file").write_text(stage)
        store.commit(draft, stage, keys(config)[stage])
    planned = plan(config)
    assert [planned[name].action for name in ("dump", "calibrate", "quantize")] == ["reuse", "reuse", "run"]
    (Path(".store") / f"dump-{planned['dump'].key}" / "file").write_text("dumb")
    again = plan(config)["dump"]
    assert (again.action, again.reason) == ("run", "stored file was altered")


# model forwards


@pytest.mark.parametrize("method", ["DDIM", "PNDM", "EulerAncestralDiscrete", "HeunDiscrete", "KDPM2AncestralDiscrete",
                                    "DPMSolverSinglestep", "DEISMultistep"])  # fmt: skip
@pytest.mark.parametrize("steps", [4, 25])
def test_evaluations_are_those_of_the_solver(method, steps):
    from runner.sampler import make_scheduler

    scheduler = make_scheduler(method)
    scheduler.set_timesteps(steps)
    sampler = {"sample_method": method, "num_sampling_steps": steps, "guidance_scale": 4.0, "guidance_batch": "joint"}

    def forwards(sampler):
        return graph.forwards({"sampler": sampler, "model": {}})

    assert forwards(sampler) == len(scheduler.timesteps)
    assert forwards({**sampler, "guidance_batch": "separate"}) == 2 * len(scheduler.timesteps)
    assert forwards({**sampler, "guidance_batch": "separate", "guidance_scale": 1.0}) == len(scheduler.timesteps)


@pytest.mark.parametrize(
    ("calibration", "text", "batch", "dumped", "sampled"),
    [
        (["a"], ["b", "c"], 1, 3, 2),
        (["a", "b"], ["a", "b"], 1, 2, 2),  # same prompt, same seed: the same clip
        (["b", "a"], ["a", "b"], 1, 4, 2),
        (["a", "b"], ["a", "b"], 2, 3, 1),  # a batched reference is another computation
        (["a"], ["a", "b", "c"], 2, 3, 2),
    ],
)
def test_forwards_count_clips(config, calibration, text, batch, dumped, sampled):
    config["prompts"] = {"text": text, "calibration": calibration}
    config["model"]["batch_size"] = batch
    planned = plan(config)
    config["timing"] |= {"warmup": 1, "repeats": 0}
    planned = plan(config)
    assert (planned["dump"].forwards, planned["sample"].forwards) == (3 * dumped, 3 * sampled + 1)
    assert planned["quantize"].forwards == 3 * len(calibration)
    config["timing"] |= {"warmup": 2, "repeats": 5}
    assert plan(config)["sample"].forwards == 3 * sampled + 1 + 2 * 7


def test_config_fixture_is_whole(config):
    assert {key for key, _ in leaves(config)} == set(schema_keys("osp12"))


def test_a_search_of_a_schedule_counts_by_its_answer_s_length_and_plans_all_forwards(config):
    config = searching_a_schedule(config)
    before, after = plan(config), plan(changed(config, "sampler.num_sampling_steps", 7))
    assert before["dump-schedule"].key == after["dump-schedule"].key
    assert before["search-schedule"].key != after["search-schedule"].key
    row = before["search-schedule"]
    # 20 coarse steps; errors at 2, 5, 7, 10, 12, 14, 17, 19 of them; three schedules of 3 steps
    assert row.at_most and row.forwards == 20 + (8 * 20 - 86) + 3 * 3
    assert plan(changed(config, "sampler.guidance_batch", "separate"))["search-schedule"].forwards == 2 * row.forwards


def test_align_your_steps_counts_by_its_own_keys_and_by_the_content_of_its_videos(config, tmp_path):
    config = changed(config, "sampler.search", "ays")
    before = plan(config)
    assert set(before["dump-schedule"].lineage["prompts"]) == {"trajectory", "text"}
    row = before["search-schedule"]
    assert not row.at_most and row.forwards == (3 - 2) * 11 * 5 * 2
    for key, other in (("neighbour_type", "random"), ("monte_carlo_iters", 3)):
        assert keys(changed(config, f"sampler.{key}", other))["search-schedule"] != row.key

    (tmp_path / "a.mp4").write_bytes(b"one")
    filmed = changed(config, "sampler.videos_path", str(tmp_path))
    first = plan(filmed)
    assert set(first["dump-schedule"].lineage["prompts"]) == {"text"}
    (tmp_path / "b.mp4").write_bytes(b"two")
    assert keys(filmed)["search-schedule"] != first["search-schedule"].key
    filmed["sample"]["compare"] = False
    assert plan(filmed)["dump-schedule"].action == "skip"


def test_stacked_searches_records_again_quantizes_and_searches_again(checked):
    rows = plan(checked("+recipe=osp12_stacked").config)
    assert [name for name, stage in rows.items() if stage.action == "run"] == [
        "dump-schedule", "search-schedule", "dump", "calibrate", "quantize", "search-cache", "sample",
    ]  # fmt: skip
    assert {"search-schedule", "dump", "quantize"} <= set(rows["search-cache"].needs)
    assert set(rows["dump"].lineage["prompts"]) == {"calibration", "verification"}
    assert rows["dump-schedule"].lineage["fields"]["sampler.num_sampling_steps"] == 100
    assert rows["dump"].lineage["fields"]["sampler.num_sampling_steps"] == 50
