"""Old launch lines become recipes: what they set, what has no counterpart, what is not there yet."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from runner.__main__ import door
from runner.config.faults import Refused
from runner.config.recipes import groups, recipes
from runner.config.schema import field
from runner.desk.commands import import_flags
from runner.desk.commands.import_flags import GUIDES, parse, translate

MINDIE = """\
export PYTORCH_NPU_ALLOC_CONF=expandable_segments:False
export TASK_QUEUE_ENABLE=2
ASCEND_RT_VISIBLE_DEVICES=0,1 HCCL_OP_EXPANSION_MODE=AIV torchrun --nproc_per_node=4 --master_port 2000 inference.py \\
  --model_path weights/29x480p --num_frames 29 --height 480 --width 640 --dtype bf16 --cache_dir ../cache_dir \\
  --text_encoder_name google/mt5-xxl --ae CausalVAEModel_D4_4x8x8 --ae_path weights/vae --text_prompt prompts.txt \\
  --save_img_path ./videos --fps 24 --guidance_scale 7.5 --num_sampling_steps 50 --max_sequence_length 512 \\
  --enable_tiling --tile_overlap_factor 0.25 --seed 1234 --do_quant --quant_type w8a8 \\
  --quant_weight_save_folder ./weights --quant_dump_calib_folder ./calib --do_save_video --use_cfg_parallel
"""
SEARCH = """torchrun --nproc_per_node=1 search_t2v_sp.py --model_path 29x480p --num_frames 29 --height 480 --width 640
  --search_type restep --videos_path ./mine --save_dir ./found --neighbour_type uniform --monte_carlo_iters 5
  --num_sampling_steps 50 --sample_method EulerAncestralDiscrete --model_type dit --text_prompt "a cat" "a dog, asleep"
""".replace("\n ", " ")
CACHE = "torchrun --nproc_per_node=8 sample_t2v_sp.py --model_path 93x720p --dit_cache_config c.json --cache_ratio 1.3"
SD3 = (
    "python sd3_inference.py --sd3_model_path ./sd3 --width 512 --infer_steps 20 --device npu --do_quant "
    "--quant_type w8a8 --quant_weight_save_folder w --quant_dump_calib_folder c --do_save_img"
)
GCU = (
    "python3 -u demo_open_sora.py --ckpt-path-dit ./dit --ckpt-path-t5 ./t5 --ckpt-path-vae2d=./v2 "
    "--ckpt-path-vae3d ./v3 --num-frames 2s --resolution 144p --aspect-ratio 9:16 --prompt 'a fish' 'a bird, red' "
    "--device gcu --llm-refine True --num-sampling-steps 30 --cfg-scale 7.0 --save-dir ./out --sample-name x --flow 2.5"
)


def test_open_sora_plan_mindie_form():
    found = translate(parse(MINDIE))
    assert found.guide == "Open-Sora-Plan v1.2 on Ascend, MindIE form"
    assert found.groups == {"model": "osp12", "hardware": "npu", "quant": "w8a8"}
    assert found.keys == {
        "model.checkpoint": "weights/29x480p", "model.num_frames": 29, "model.height": 480, "model.width": 640,
        "model.dtype": "bf16", "model.cache_dir": "../cache_dir", "model.text_encoder": "google/mt5-xxl",
        "model.ae": "CausalVAEModel_D4_4x8x8", "model.vae": "weights/vae", "prompts.text": "prompts.txt",
        "sample.folder": "./videos", "model.fps": 24, "sampler.guidance_scale": 7.5, "sampler.num_sampling_steps": 50,
        "model.max_sequence_length": 512, "model.enable_tiling": True, "model.tile_overlap_factor": 0.25, "seed": 1234,
        "quant.folder": "./weights", "dump.folder": "./calib", "dump.format": "pth", "sample.save": True,
        "parallel.cfg": True, "parallel.world_size": 4, "parallel.ulysses": 2, "parallel.master_port": 2000,
        "model.save_memory": False, "timing.repeats": 0, "sample.compare": False,
        "sampler.sample_method": "EulerAncestralDiscrete",
        "hardware.env": {
            "PYTORCH_NPU_ALLOC_CONF": "expandable_segments:False", "TASK_QUEUE_ENABLE": "2",
            "ASCEND_RT_VISIBLE_DEVICES": "0,1", "HCCL_OP_EXPANSION_MODE": "AIV",
        },
    }  # fmt: skip
    assert found.without == []


def test_open_sora_plan_msmodelslim_form():
    found = translate(parse(SEARCH))
    assert found.guide == "Open-Sora-Plan v1.2 on Ascend, msModelSlim form"
    assert found.keys["sampler.search"] == "ays" and found.keys["sampler.videos_path"] == "./mine"
    assert found.keys["prompts.text"] == ["a cat", "a dog, asleep"]
    assert found.keys["sampler.monte_carlo_iters"] == 5 and found.keys["seed"] == 42
    assert found.keys["model.enable_tiling"] is False and "parallel.world_size" not in found.keys
    cache = translate(parse(CACHE)).keys
    assert (cache["cache.policy"], cache["cache.config"], cache["cache.ratio"]) == ("dit_cache", "c.json", 1.3)
    assert cache["sampler.sample_method"] == "PNDM" and cache["model.num_frames"] == 1  # what that script takes unasked
    assert (cache["parallel.world_size"], cache["parallel.ulysses"]) == (8, 8)


def test_stable_diffusion_3():
    found = translate(parse(SD3))
    assert found.groups == {"model": "sd3", "hardware": "npu", "quant": "w8a8"}
    assert (found.keys["model.width"], found.keys["model.height"], found.keys["seed"]) == (512, 1024, 42)
    assert found.keys["sampler.num_sampling_steps"] == 20 and found.keys["sampler.guidance_scale"] == 7.0
    assert found.keys["prompts.text"] == "./calib_prompts.txt" and found.keys["sample.save"] is True


def test_open_sora_12_on_gcu():
    found = translate(parse(GCU))
    assert found.groups == {"model": "opensora12", "hardware": "gcu"}
    assert found.keys["model.vae2d"] == "./v2" and found.keys["model.aspect_ratio"] == "9:16"
    assert found.keys["prompts.text"] == ["a fish", "a bird, red"] and found.keys["model.num_frames"] == "2s"
    assert found.keys["model.flow"] == 2.5
    assert [line.split()[0] for line in found.without] == ["--llm_refine", "--sample_name"]
    assert "no language model is asked" in found.without[0]


def test_what_is_not_there_yet_is_named_by_the_schema(monkeypatch):
    from runner.config import schema

    monkeypatch.setitem(schema.AVAILABLE, "parallel.cfg", (False,))
    assert "parallel.cfg=true" in translate(parse(MINDIE)).not_yet
    monkeypatch.delitem(schema.AVAILABLE, "parallel.cfg")
    assert "parallel.cfg=true" not in translate(parse(MINDIE)).not_yet
    wrong = translate(parse(MINDIE.replace("--height 480", "--height 480.5").replace("bf16", "int8"))).not_yet
    assert any(line.startswith("model.height=480.5") for line in wrong)
    assert any(line.startswith("model.dtype=int8") for line in wrong)
    monkeypatch.setattr(import_flags, "groups", lambda: {**groups(), "model": []})
    assert "model=osp12" in translate(parse(MINDIE)).not_yet


@pytest.mark.parametrize("file", sorted(GUIDES.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_key_of_a_guide_is_one(file):
    guide = yaml.safe_load(file.read_text())
    assert all(member in groups()[group] for group, member in guide["groups"].items())
    named = set(guide["sets"])
    for meaning in guide["flags"].values():
        if isinstance(meaning, str):
            named.add(meaning)
            continue
        assert meaning.keys() <= {"key", "with", "switch", "absent", "values", "none"}
        named |= {meaning["key"]} if "key" in meaning else set()
        for part in ("with", "switch", "absent"):
            named |= meaning.get(part, {}).keys()
        for chosen in meaning.get("values", {}).values():
            named |= chosen.keys() - {"remark"}
    assert {key for key in named if field(key) is None} == set()


def test_the_recipe_composes_and_checks(checked, capsys):
    line = "python inference.py --num_frames 9 --height 32 --width 48 --text_prompt prompts.txt --do_quant --dtype fp16"
    Path("prompts.txt").write_text("a red boat\n")
    assert door(["import-flags", "--name", "mine", line]) == 0
    out = capsys.readouterr().out
    assert "recipe   recipes/mine.yaml\ncommand  python -m runner +recipe=mine\n" in out
    assert "without a counterpart" not in out and "what is done otherwise:" in out
    assert recipes()["mine"].purpose == "By the guide of Open-Sora-Plan v1.2 on Ascend, MindIE form."
    run = checked("+recipe=mine", "hardware=cpu")
    assert run.config["name"] == "mine" and run.config["quant"]["scheme"] == "w8a8"
    assert run.config["model"]["dtype"] == "fp16" and run.config["model"]["height"] == 32
    assert run.config["prompts"]["text"] == ["a red boat"] and run.config["sample"]["save"] is False
    assert run.origin["model.num_frames"] == "recipe"


def test_a_recipe_is_not_written_over(capsys):
    Path("recipes").mkdir()
    Path("recipes/mine.yaml").write_text("seed: 7\n")
    assert door(["import-flags", "--name", "mine", MINDIE]) == 2
    assert "recipes/mine.yaml is there already" in capsys.readouterr().err
    assert Path("recipes/mine.yaml").read_text() == "seed: 7\n"


def test_words_of_the_shell_serve_as_well_as_one_quoted_line(capsys):
    assert door(["import-flags", "torchrun", "inference.py", "--text_prompt", "a cat, asleep", "--height", "480"]) == 0
    recipe = yaml.safe_load(capsys.readouterr().out)
    assert recipe["prompts"]["text"] == "a cat, asleep" and recipe["model"]["height"] == 480


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("torchrun --nproc_per_node=2", "found no Python script"),
        ("python 'inference.py", "the line does not parse"),
        ("python train.py --lr 3 --model_path x --data y", "expected a script of one of these guides"),
    ],
)
def test_what_is_no_line_of_a_guide_is_refused(line, says):
    with pytest.raises(Refused, match=says):
        translate(parse(line))


def test_an_unknown_script_is_told_by_its_flags():
    assert translate(parse("python run.py --sd3_model_path x --infer_steps 3")).groups["model"] == "sd3"


def test_what_has_no_counterpart_is_said():
    line = "torchrun --nproc_per_node=3 --nnodes 2 inference.py --use_cfg_parallel --algorithm fast --num_frame 9 --fps"
    without = translate(parse(line)).without
    assert without[0] == "--algorithm fast: expected dit_cache or sampling_optimize"
    assert "--num_frame: the guide has no such flag; did it mean --num_frames?" in without
    assert "--fps: it has no value" in without
    assert any(entry.startswith("--nnodes 2 of the launcher") for entry in without)
    assert any("expected an even number" in entry for entry in without)
    assert any("every process" in entry for entry in translate(parse(f"torchrun --nproc_per_node 2 {SD3[7:]}")).without)
