"""What is refused, in which words; what a run becomes when it is not."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from support.pipeline_folder import folder as pipeline_folder

from runner.config.faults import Refused
from runner.config.precedence import leaves
from runner.config.recipes import folder, recipes
from runner.config.schema import SECTIONS, architectures, field, keys
from runner.desk.check import rules
from runner.desk.check.config import _by_schema
from runner.desk.plan.graph import with_values
from runner.model import checkpoints
from runner.model.osp12.templates import NEGATIVE

RECIPES = sorted(path.stem for path in (Path(__file__).parents[3] / "recipes").glob("*.yaml"))


def refusal(checked, *arguments: str) -> dict[str, str]:
    """The faults of a refused configuration: full key -> what is said."""
    with pytest.raises(Refused) as refused:
        checked(*arguments)
    return {fault.key: str(fault) for fault in refused.value.faults}


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_composes_and_checks(
    composed, recipe, tiny_checkpoint, tiny_opensora12, reference_image, tmp_path
):
    model = recipe.partition("_")[0]
    checkpoints = {"osp12": tiny_checkpoint, "opensora12": tiny_opensora12, "sd3": tmp_path / "sd3"}
    pipeline_folder(checkpoints["sd3"], "StableDiffusion3Pipeline")
    given = [f"prompts.references={reference_image}"] if recipe.endswith("i2v") else []
    run = composed(f"+recipe={recipe}", f"model.checkpoint={checkpoints[model]}", *given)
    assert run.config["name"] == recipe
    assert run.config["model"]["name"] == model
    assert run.config["quant"]["scheme"] == ("w8a8" if recipe.endswith(("w8a8", "stacked")) else "none")


def test_the_recipes_that_are_tested_are_those_that_are_offered():
    assert RECIPES == sorted(recipes()) and {name.partition("_")[0] for name in RECIPES} == {
        "osp12",
        "opensora12",
        "sd3",
    }


@pytest.mark.parametrize(
    ("recipe", "frames", "height", "width"),
    [("29x480p", 29, 480, 640), ("93x480p", 93, 480, 640), ("29x720p", 29, 720, 1280), ("93x720p", 93, 720, 1280)],
)
def test_released_folders(checked, recipe, frames, height, width, tiny_checkpoint):
    model = checked(f"+recipe=osp12_{recipe}_w8a8", f"model.checkpoint={tiny_checkpoint}").config["model"]
    assert (model["num_frames"], model["height"], model["width"]) == (frames, height, width)


def test_guide_defaults_hold_for_a_folder_that_says_nothing_else(checked, tiny_checkpoint, tmp_path):
    released = tmp_path / "released"
    shutil.copytree(tiny_checkpoint.parent, released)
    (released / tiny_checkpoint.name / "defaults.yaml").unlink()
    config = checked("+recipe=osp12_w8a8", f"model.checkpoint={released / tiny_checkpoint.name}").config
    expected = {
        "num_frames": 93, "height": 720, "width": 1280, "dtype": "bf16", "fps": 24, "batch_size": 1,
        "max_sequence_length": 512, "tile_overlap_factor": 0.25, "enable_tiling": True, "save_memory": False,
        "ae": "CausalVAEModel_D4_4x8x8", "model_type": "dit", "template": "unwatermarked",
    }  # fmt: skip
    assert expected.items() <= config["model"].items()
    assert config["sampler"]["sample_method"] == "EulerAncestralDiscrete"
    assert (config["sampler"]["guidance_scale"], config["sampler"]["num_sampling_steps"]) == (7.5, 50)
    assert config["seed"] == 1234
    assert config["quant"]["exclude"] == ["*net.2*", "*adaln_single*", "proj_out"]
    assert config["prompts"]["text"] and config["prompts"]["calibration"] == config["prompts"]["text"]


def test_negative_prompt_is_the_references_to_the_letter(checked):
    assert checked().config["model"]["negative_prompt"] == NEGATIVE.replace("{}", "")


def test_every_key_of_the_schema_has_a_value_and_the_other_way_round(checked, opensora12):
    assert {key for key, _ in leaves(checked().config)} == set(keys("osp12"))
    of_model = keys("opensora12")
    assert {key for key, _ in leaves(opensora12().config)} == set(of_model)
    assert set(keys()) == {key for name in architectures() for key in keys(name)}


@pytest.mark.parametrize("name", architectures())
def test_every_key_of_a_model_has_a_value_in_its_group(name):
    group = yaml.safe_load((folder("conf") / "model" / f"{name}.yaml").read_text())
    assert {f"model.{key}" for key in group["model"]} == {key for key in keys(name) if key.startswith("model.")}
    assert group["model"]["name"] == name


def test_keys_of_another_model_are_refused(checked):
    assert (
        refusal(checked, "model.call.image=a")["model.call"] == "model.call: osp12 has no such key (sd3, diffusers has)"
    )
    (said,) = refusal(checked, "model.name=sd3").values()
    assert said == "model.name: expected that the section has its other keys: choose it by model=sd3"


def test_a_model_without_a_checkpoint_of_its_own_demands_one(composed):
    found = refusal(composed, "model=diffusers", "prompts.text=a cat")
    assert list(found) == ["model.checkpoint"]
    assert found["model.checkpoint"].startswith("model.checkpoint: must be given: model.checkpoint=...")


def test_guidance_is_batched_as_the_pipeline_does_it(composed, checked, tmp_path):
    sd3 = pipeline_folder(tmp_path / "sd3", "StableDiffusion3Pipeline")
    found = refusal(composed, "model=sd3", f"model.checkpoint={sd3}", "parallel=cfg2")
    assert found["parallel.cfg"].endswith("expected false: the branches of guidance of model=sd3 do not run apart")
    found = refusal(
        composed, "model=diffusers", f"model.checkpoint={sd3}", "prompts.text=a", "sampler.guidance_batch=joint"
    )
    assert found["sampler.guidance_batch"].endswith("expected null with model=diffusers")
    assert "expected joint or separate" in refusal(checked, "sampler.guidance_batch=null")["sampler.guidance_batch"]


def test_what_a_checkpoint_s_solver_is_set_to_decides_on_schedules(composed, tmp_path):
    def said(name, solver, *arguments, **settings):
        folder = pipeline_folder(tmp_path / name, "WanPipeline", f"{solver}Scheduler")
        if settings:
            (folder / "scheduler/scheduler_config.json").write_text(
                json.dumps({"_class_name": f"{solver}Scheduler", **settings})
            )
        model = ("model=diffusers", f"model.checkpoint={folder}", "prompts.text=a")
        return refusal(composed, *model, "sampler.search=recording", "sampler.num_sampling_steps=9", *arguments)

    assert "UniPCMultistep: its corrector goes back over each step" in said("a", "UniPCMultistep")["sampler.search"]
    assert "CogVideoXDPM takes no schedule" in said("b", "CogVideoXDPM")["sampler.search"]
    flow = said("c", "FlowMatchEulerDiscrete", stochastic_sampling=True)
    assert flow["sampler.search"].endswith("has stochastic_sampling: true; schedules are for false")
    flow = said("d", "FlowMatchEulerDiscrete", "sampler.search=null", "sampler.schedule=/x.json", invert_sigmas=True)
    assert any("has invert_sigmas: true" in sentence for sentence in flow.values())
    dpm = said("e", "DPMSolverMultistep", algorithm_type="sde-dpmsolver++")
    assert 'has algorithm_type: "sde-dpmsolver++"' in dpm["sampler.search"]
    ays = said("f", "DPMSolverMultistep", "sampler.search=ays", f"sampler.videos_path={tmp_path}")
    assert "sampler.videos_path" in ays
    assert (
        "Align Your Steps is of noise levels"
        in said("g", "FlowMatchEulerDiscrete", "sampler.search=ays")["sampler.search"]
    )


def test_a_hub_id_of_a_foreign_pipeline_is_its_folder_in_the_hub_s_cache(composed, tmp_path, monkeypatch):
    """The cache's layout is the hub's own: commits are folders, and a branch is a file that names one."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository, commit = tmp_path / "hub/models--owner--tiny", "0123456789abcdef0123456789abcdef01234567"
    flux = pipeline_folder(repository / "snapshots" / commit, "FluxPipeline")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    at = ("model=diffusers", "model.checkpoint=owner/tiny", "prompts.text=a")
    for revision in (commit, "main"):
        checked = composed(*at, f"model.revision={revision}")
        assert checked.config["model"]["checkpoint"] == str(flux)
        assert checked.config["sampler"]["guidance_scale"] == 3.5  # what its pipeline says of itself
        assert checked.checkpoint.label == f"owner/tiny at revision {revision} of the hub"
    found = refusal(composed, *at, "model.revision=older")
    assert "has no such revision of it: hf download it first" in found["model.checkpoint"]
    assert "there is no folder" in refusal(composed, *at)["model.checkpoint"]


def test_the_stacked_recipe_of_stable_diffusion_3(composed, tmp_path):
    sd3 = pipeline_folder(tmp_path / "sd3", "StableDiffusion3Pipeline")
    config = composed("+recipe=sd3_stacked", f"model.checkpoint={sd3}").config
    assert config["quant"]["scheme"] == "w8a8" and config["cache"]["ratio"] == 1.3
    assert config["sampler"]["search"] == "recording" and config["sampler"]["num_sampling_steps"] == 14


def test_offload_is_for_what_is_not_the_host(checked):
    said = refusal(checked, "hardware.offload=true")["hardware.offload"]
    assert said.endswith("expected false for hardware=cpu: all parts are on the host as it is")
    elsewhere = refusal(checked, "hardware.offload=true", "hardware=cuda")
    assert set(elsewhere) <= {"hardware.device"}  # where there is no card


def test_blocks_that_a_model_does_not_have_are_refused_before_it_is_loaded(composed, checked, tiny_opensora12):
    at = ("+recipe=opensora12_sample", f"model.checkpoint={tiny_opensora12}", "cache=dit_cache")
    four = ("cache.step_start=0", "cache.step_interval=2", "cache.block_start=3", "cache.num_blocks=2")
    found = refusal(checked, *at, *four)
    assert found["cache.num_blocks"].endswith("blocks 3 to 4 are to be reused; the model has 4")


def test_the_recipe_of_stable_diffusion_3_is_its_guide(composed, tmp_path):
    sd3 = pipeline_folder(tmp_path / "sd3", "StableDiffusion3Pipeline")
    config = composed("+recipe=sd3_w8a8", f"model.checkpoint={sd3}").config
    model, sampler = config["model"], config["sampler"]
    assert (model["height"], model["width"], config["seed"]) == (1024, 1024, 42)
    assert (sampler["num_sampling_steps"], sampler["guidance_scale"]) == (28, 7.0)
    assert sampler["sample_method"] == "FlowMatchEulerDiscrete" and sampler["guidance_batch"] == "joint"
    assert config["quant"]["scheme"] == "w8a8" and config["quant"]["exclude"] == ["context_embedder", "proj_out"]
    said = refusal(composed, "+recipe=sd3_w8a8", f"model.checkpoint={sd3}", "sampler.sample_method=DDIM")
    assert "expected FlowMatchEulerDiscrete" in said["sampler.sample_method"]


def test_without_a_checkpoint_stable_diffusion_3_is_the_little_one(composed):
    run = composed("+recipe=sd3_w8a8")
    assert run.checkpoint.embedded and run.checkpoint.path.endswith("weights/sd3")
    model, sampler = run.config["model"], run.config["sampler"]
    assert (model["height"], model["width"], model["text_encoder_3"]) == (64, 64, False)
    assert (sampler["num_sampling_steps"], sampler["guidance_scale"]) == (28, 2.0)
    assert run.config["sample"]["judge"] == "world" and run.config["prompts"]["text"][0] == "a red circle on the left"


def test_every_key_has_a_meaning():
    assert all(keys().values())


def test_resolved_places_are_absolute(checked, tiny_checkpoint, tmp_path):
    config = checked("quant.folder=there", "output=elsewhere", f"model.checkpoint={tiny_checkpoint}").config
    assert config["quant"]["folder"] == str(tmp_path / "there")
    assert config["output"] == str(tmp_path / "elsewhere")
    assert config["model"]["checkpoint"] == str(tiny_checkpoint)
    assert config["model"]["vae"] == str(tiny_checkpoint.parent / "vae")
    assert config["model"]["text_encoder"] == str(tiny_checkpoint.parent / "text_encoder")


def test_relative_checkpoint(checked, tiny_checkpoint, monkeypatch):
    monkeypatch.chdir(tiny_checkpoint.parent)
    assert checked(f"model.checkpoint={tiny_checkpoint.name}").checkpoint.path == str(tiny_checkpoint)


def test_all_faults_at_once(checked):
    found = refusal(
        checked,
        "+recipe=osp12_w8a8",
        "model.num_frame=5",
        "+quant.bit=4",
        "guidance_scale=3",
        "seed=abc",
        "model.height=100",
        "model.dtype=bf61",
        "model.tile_overlap_factor=1.5",
        "sampler.sample_method=EulerAncestral",
        "cache.ratio=2.3",
        "until=dmp",
    )
    assert found == {
        "model.num_frame": "model.num_frame: there is no such key; did you mean model.num_frames?",
        "quant.bit": "quant.bit: there is no such key",
        "guidance_scale": "guidance_scale: there is no such key; did you mean sampler.guidance_scale?",
        "seed": "seed = 'abc': expected a whole number",
        "model.height": "model.height = 100: expected a multiple of 16 pixels, the nearest are 96 and 112",
        "model.dtype": "model.dtype = 'bf61': expected bf16, fp16 or fp32; did you mean bf16?",
        "model.tile_overlap_factor": "model.tile_overlap_factor = 1.5: expected less than 1.0",
        "sampler.sample_method": found["sampler.sample_method"],
        "cache.ratio": "cache.ratio = 2.3: expected a number above 1 and up to 2, or auto",
        "until": found["until"],
    }
    assert found["until"].startswith("until = 'dmp': expected ") and found["until"].endswith("did you mean dump?")
    assert found["sampler.sample_method"].endswith("did you mean EulerAncestralDiscrete?")


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("model.num_frames=92", "4n+1 frames, the nearest are 89 and 93"),
        ("model.num_frames=0", "at least 1"),
        ("model.width=650", "multiple of 16 pixels, the nearest are 640 and 656"),
        ("model.max_sequence_length=600", "at most 512 tokens"),
        ("model.template=fancy", "with {} where the prompt goes"),
        ("model.ae=WFVAE", "CausalVAEModel_D4_4x8x8"),
        ("model.num_frames=9.5", "a whole number"),
        ("model.num_frames='9'", "a whole number"),
        ("model.clean_caption=1", "true or false"),
        ("model.fps=0", "at least 1"),
        ("seed=-1", "at least 0"),
        ("sampler.num_sampling_steps=1001", "at most 1000"),
        ("sampler.guidance_batch=both", "joint or separate"),
        ("quant.percentile=101", "at most 100"),
        ("quant.include=[]", "a list that is not empty"),
        ("quant.exclude=proj_out", "a list"),
        ("sample.judge=me", "none or world"),
        ("timing.repeats=-1", "at least 0"),
        ("name=a/b", "letters, digits"),
        ("until=samples", "did you mean sample?"),
        ("redo=5", "a stage or a list of stages"),
        ("redo=[dump, 5]", "a stage or a list of stages"),
        ("hardware.env.A=1", "a text"),
        ("dump.from=nowhere.pth", "no such file"),
        ("cache.policy=dit", "expected none, dit_cache or adaptive"),
        ("cache.ratio=fast", "expected a number above 1 and up to 2, or auto"),
        ("cache.ratio=1.3", "is for cache=dit_cache or cache=adaptive; there is no cache here"),
        ("cache.save_path=a.json", "is for cache=dit_cache"),
        ("sample.lpips=nowhere", "no such folder"),
        ("~seed", "needs one"),
    ],
)
def test_value_out_of_bounds(checked, argument, says):
    found = refusal(checked, argument)
    key = argument.lstrip("~").partition("=")[0]
    assert list(found) == [key] and says in found[key]


def floats(architecture: str) -> list[str]:
    """The keys of an architecture that the schema has as floats, but for those that say that they may be infinite."""
    found = {key: field(key, architecture) for key in keys(architecture)}
    may = {key for key, said in found.items() if any(getattr(m, "allow_inf_nan", False) for m in said.metadata)}
    kinds = {key: (said.annotation, *get_args(said.annotation)) for key, said in found.items() if key not in may}
    return [key for key, kind in kinds.items() if float in kind]


@pytest.fixture
def whole(composed, checked, opensora12, tmp_path):
    """`whole(architecture)`: a configuration that the schema takes."""

    def of(architecture: str) -> dict[str, Any]:
        if architecture in ("sd3", "diffusers"):
            place = pipeline_folder(tmp_path / architecture, "StableDiffusion3Pipeline")
            return composed(f"model={architecture}", f"model.checkpoint={place}", "prompts.text=a cat").config
        return (opensora12() if architecture == "opensora12" else checked()).config

    return of


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan], ids=str)
@pytest.mark.parametrize("architecture", architectures())
def test_no_key_takes_a_number_that_is_not_finite(whole, architecture, number):
    """Whatever its type: as the value itself, in a list, in a mapping, and in one within the other."""
    config = whole(architecture)
    assert _by_schema(config, ()) == []
    of_floats = floats(architecture)
    assert {"sampler.guidance_scale", "quant.percentile", "cache.quality"} <= set(of_floats)
    for key in keys(architecture):
        for value in (number, [number], {"a": number}, {"a": [0.5, {"b": number}]}):
            faults = _by_schema(with_values(config, {key: value}), ())
            assert faults and all(fault.key == key or fault.key.startswith(f"{key}.") for fault in faults), key
        if key in of_floats:
            (fault,) = _by_schema(with_values(config, {key: number}), ())
            assert str(fault) == f"{key} = {number}: expected a finite number"


def test_every_other_model_s_floats_are_among_those():
    assert "model.tile_overlap_factor" in floats("osp12")
    assert {"model.aes", "model.flow", "model.condition_frame_edit"} <= set(floats("opensora12"))


@pytest.mark.parametrize("number", ["inf", "-inf", "nan", "1e400"])
def test_a_number_that_is_not_finite_on_the_command_line(checked, number):
    keys = ("sampler.guidance_scale", "cache.quality", "cache.ratio")
    found = refusal(checked, *(f"{key}={number}" for key in keys))
    assert set(found) == set(keys)
    assert found[keys[0]] == f"sampler.guidance_scale = {float(number)}: expected a finite number"


def test_a_number_that_is_not_finite_among_the_arguments_of_a_call(composed, tmp_path):
    place = pipeline_folder(tmp_path / "sd3", "StableDiffusion3Pipeline")
    typed = ["model=sd3", f"model.checkpoint={place}", "prompts.text=a cat"]
    found = refusal(composed, *typed, "model.call={clip_skip:inf,joint_attention_kwargs:{scale:[1,nan]}}")
    assert found == {
        "model.call.clip_skip": "model.call.clip_skip = inf: expected a finite number",
        "model.call.joint_attention_kwargs": found["model.call.joint_attention_kwargs"],
    }
    assert found["model.call.joint_attention_kwargs"].endswith(": expected a finite number")


def test_a_number_that_is_not_finite_in_a_recipe(checked):
    Path("recipes").mkdir()
    Path("recipes/mine.yaml").write_text("sampler:\n  guidance_scale: .inf\n")
    assert refusal(checked, "+recipe=mine") == {
        "sampler.guidance_scale": "sampler.guidance_scale = inf: expected a finite number (by the recipe)"
    }


@pytest.mark.parametrize("section", [name for name in SECTIONS if name != "model"])
def test_a_section_that_is_taken_out(checked, section):
    found = refusal(checked, f"~{section}")
    assert found and all(key.partition(".")[0] == section and "needs one" in found[key] for key in found)


def test_steps_too_few_for_the_method(checked):
    found = refusal(checked, "sampler.sample_method=PNDM", "sampler.num_sampling_steps=3")
    assert found == {"sampler.num_sampling_steps": found["sampler.num_sampling_steps"]}
    assert "PNDM takes 4 steps or more" in found["sampler.num_sampling_steps"]
    checked("sampler.sample_method=PNDM", "sampler.num_sampling_steps=4")


@pytest.mark.parametrize(
    "arguments",
    [["quant.scheme=w8a8_dynamic"], ["parallel.ulysses=2", "parallel.world_size=2"], ["parallel.vae=true"]],
)
def test_what_a_later_version_brings_is_refused_by_name(checked, arguments):
    key = arguments[0].partition("=")[0]
    found = refusal(checked, *arguments)
    assert list(found) == [key] and "this feature is not there yet" in found[key]


@pytest.mark.parametrize("model", ["osp12", "opensora12", "sd3", "diffusers"])
def test_heads_that_processes_cannot_share_are_said_beside_it(
    checked, tiny_checkpoint, tiny_opensora12, tmp_path, model
):
    """The rule is told although sharing a sequence is not there yet. All four have four heads."""
    foreign = pipeline_folder(tmp_path / "p", "StableDiffusion3Pipeline")
    (foreign / "transformer" / "config.json").write_text('{"num_attention_heads": 4}')
    place = {"osp12": tiny_checkpoint, "opensora12": tiny_opensora12}.get(model, foreign)
    asked = [f"model={model}", f"model.checkpoint={place}", "prompts.text=a"]

    def said(degree: int) -> list[str]:
        with pytest.raises(Refused) as refused:
            checked(*asked, f"parallel.ulysses={degree}", f"parallel.world_size={degree}")
        return [str(fault) for fault in refused.value.faults if fault.key.startswith("parallel")]

    assert len(said(2)) == 1 and "not there yet" in said(2)[0]
    assert ["expected a divisor of the 4 heads" in each for each in said(3)] == [False, True]


def test_more_processes_than_the_degrees_take_are_said_beside_it(checked):
    found = refusal(checked, "parallel.ulysses=2", "parallel.cfg=true", "parallel.world_size=2")
    assert "expected 4: parallel.cfg takes 2, parallel.ulysses 2" in found["parallel.world_size"]
    assert "not there yet" in found["parallel.ulysses"]


@pytest.mark.parametrize(
    ("device", "says"),
    [
        ("npu", "torch_npu is not installed: pip install 'dit-runner[npu]'"),
        ("gcu", "it comes with Enflame's TopsRider"),
    ],
)
def test_a_vendor_s_device_is_refused_where_its_package_is_absent(checked, monkeypatch, device, says):
    asked = []
    monkeypatch.setattr(rules, "find_spec", lambda name: asked.append(name))
    found = refusal(checked, f"hardware={device}")
    assert list(found) == ["hardware.device"] and says in found["hardware.device"] and asked == [f"torch_{device}"]
    monkeypatch.setattr(rules, "find_spec", lambda name: object())
    assert checked(f"hardware={device}").config["hardware"]["device"] == device


@pytest.mark.parametrize(
    ("arguments", "key", "says"),
    [
        (["parallel.world_size=2"], "parallel.world_size", "expected 1: parallel.cfg takes 1, parallel.ulysses 1"),
        (["parallel.cfg=true"], "parallel.world_size", "expected 2: parallel.cfg takes 2, parallel.ulysses 1"),
        (["parallel=cfg2", "sampler.guidance_scale=1"], "parallel.cfg", "without guidance there is one branch"),
        (["parallel=cfg2", "sampler.guidance_batch=joint"], "sampler.guidance_batch", "expected separate"),
        (["parallel=cfg2", "parallel.nodes=2"], "parallel.nodes", "launch=print shows what to type"),
        (["parallel=cfg2", "parallel.nodes=3", "launch=print"], "parallel.nodes", "a divisor of parallel.world_size"),
    ],
)
def test_processes_that_do_not_fit_together(checked, arguments, key, says):
    found = refusal(checked, *arguments)
    assert list(found) == [key] and says in found[key]


def test_branches_on_two_processes_are_separate_forwards(checked):
    found = checked("parallel=cfg2")
    assert found.config["sampler"]["guidance_batch"] == "separate"
    assert found.origin["sampler.guidance_batch"] == "parallel.cfg"
    assert checked().config["sampler"]["guidance_batch"] == "joint"
    assert checked("parallel=cfg2", "sampler.guidance_batch=separate").config == found.config


def test_the_launch_environment_of_the_guides_is_a_group():
    import yaml

    npu = yaml.safe_load((folder("conf") / "hardware" / "npu.yaml").read_text())
    assert npu["env"].keys() == {
        "ASCEND_RT_VISIBLE_DEVICES",
        "PYTORCH_NPU_ALLOC_CONF",
        "TASK_QUEUE_ENABLE",
        "HCCL_OP_EXPANSION_MODE",
    }
    assert all(isinstance(value, str) for value in npu["env"].values())


def test_released_recipe_demands_a_checkpoint(composed):
    with pytest.raises(Refused) as refused:
        composed("+recipe=osp12_29x480p_w8a8")
    assert [fault.key for fault in refused.value.faults] == ["model.checkpoint"]
    assert "must be given: model.checkpoint=..." in str(refused.value)


# prompts


@pytest.mark.parametrize("value", ["a.txt", "[a cat, ' a dog ']", "'[a cat]'"])
def test_prompts_become_a_list(checked, value):
    Path("a.txt").write_text("\ufeff a cat\n\n  a dog \n", encoding="utf-8")
    prompts = checked(f"prompts.text={value}", "prompts.calibration=null").config["prompts"]
    assert prompts["text"] == (["[a cat]"] if "'[" in value else ["a cat", "a dog"])


def test_one_prompt_and_the_checkpoints_own_calibration(checked):
    assert checked("prompts.text=a cat").config["prompts"] == {
        "text": ["a cat"], "calibration": ["a green tree"], "verification": ["a green tree"],
        "references": None, "mask_strategy": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "No such file"),
        (b"", "holds no prompt"),
        (b" \n\n", "holds no prompt"),
        ("Müller\n".encode("latin-1"), "is not UTF-8 (byte 1)"),
    ],
)
@pytest.mark.parametrize("key", ["prompts.text", "prompts.calibration"])
def test_prompts_file_of_no_use(checked, content, says, key):
    if content is not None:
        Path("a.txt").write_bytes(content)
    found = refusal(checked, f"{key}=a.txt")
    assert list(found) == [key] and says in found[key]


@pytest.mark.parametrize("value", ["[]", "''", "5", "[a, 5]", "[a, ' ']", "null"])
def test_prompts_that_are_none(checked, value):
    assert refusal(checked, f"prompts.text={value}").keys() == {"prompts.text"}


# checkpoints


def test_checkpoint_folder_is_missing(checked):
    found = refusal(checked, "model.checkpoint=nowhere")
    assert list(found) == ["model.checkpoint"] and "there is no folder" in found["model.checkpoint"]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "config.json").write_text("[]"), "holds no JSON object"),
        (lambda folder: (folder / "config.json").write_text('{"_class_name": "STDiT3"}'), "describes a STDiT3"),
        (lambda folder: (folder / "diffusion_pytorch_model.safetensors").unlink(), "has no weights"),
    ],
)
def test_checkpoint_of_no_use(checked, tiny_checkpoint, tmp_path, damage, says):
    shutil.copytree(tiny_checkpoint.parent, tmp_path / "damaged")
    damage(tmp_path / "damaged" / tiny_checkpoint.name)
    found = refusal(checked, f"model.checkpoint=damaged/{tiny_checkpoint.name}")
    assert list(found) == ["model.checkpoint"] and says in found["model.checkpoint"]


def test_checkpoint_without_a_vae(checked, tiny_checkpoint, tmp_path):
    shutil.copytree(tiny_checkpoint, tmp_path / "alone")
    found = refusal(checked, "model.checkpoint=alone")
    assert list(found) == ["model.vae"]
    config = checked("model.checkpoint=alone", f"model.vae={tiny_checkpoint.parent / 'vae'}").config
    assert config["model"]["text_encoder"] == "google/mt5-xxl"


def test_parts_inside_the_checkpoint_come_first(checked, tiny_checkpoint, tmp_path):
    shutil.copytree(tiny_checkpoint.parent, tmp_path / "both")
    inside = tmp_path / "both" / tiny_checkpoint.name / "vae"
    shutil.copytree(tmp_path / "both" / "vae", inside)
    assert checked(f"model.checkpoint=both/{tiny_checkpoint.name}").config["model"]["vae"] == str(inside)


def test_part_that_is_not_there(checked):
    assert refusal(checked, "model.vae=/nowhere/vae").keys() == {"model.vae"}


def test_hub_id_needs_a_revision(checked, tiny_checkpoint):
    run = checked(
        "model.checkpoint=somebody/weights/29x480p", "model.revision=abc", f"model.vae={tiny_checkpoint.parent / 'vae'}"
    )
    assert run.config["model"]["checkpoint"] == "somebody/weights/29x480p"
    assert run.checkpoint.folder is None


def test_fault_in_the_checkpoints_defaults_names_the_file(checked, tiny_checkpoint, tmp_path):
    shutil.copytree(tiny_checkpoint.parent, tmp_path / "own")
    path = tmp_path / "own" / tiny_checkpoint.name / "defaults.yaml"
    path.write_text(json.dumps({"model": {"num_frames": 10, "frames": 9}}))
    found = refusal(checked, f"model.checkpoint={path.parent}")
    assert found.keys() == {"model.num_frames", "model.frames"}
    assert all(str(path) in fault for fault in found.values())


def test_every_recipe_begins_with_its_command_and_its_purpose():
    for recipe in recipes().values():
        assert recipe.command.replace(" -m +", " +").startswith(f"python -m runner +recipe={recipe.name}")
        assert 20 < len(recipe.purpose) < 120


# hardware and the shipped weights


@pytest.mark.parametrize(
    ("driver", "torch", "says"),
    [
        (False, "2.13.0", "has no NVIDIA driver"),
        (True, "2.13.0+cpu", "built for the CPU alone"),
        (True, "2.13.0", None),
    ],
)
def test_cuda_without_a_gpu_shows_before_torch(checked, monkeypatch, driver, torch, says):
    def load(name: str) -> None:
        if not driver:
            raise OSError(name)

    monkeypatch.setattr(rules.ctypes, "CDLL", load)
    monkeypatch.setattr(rules.metadata, "version", lambda package: torch)
    if says is None:
        assert checked("hardware=cuda").config["hardware"]["device"] == "cuda"
    else:
        assert says in refusal(checked, "hardware=cuda")["hardware.device"]


def test_a_schedule_s_file_says_how_many_steps(checked, tmp_path):
    (tmp_path / "mine.txt").write_text("[0.0, 0.25, 0.5, 0.999]")
    sampler = checked("sampler.schedule=mine.txt").config["sampler"]
    assert (sampler["schedule"], sampler["num_sampling_steps"]) == (str(tmp_path / "mine.txt"), 4)
    checked("sampler.schedule=mine.txt", "sampler.num_sampling_steps=4")
    found = refusal(checked, "sampler.schedule=mine.txt", "sampler.num_sampling_steps=50")
    assert "expected 4, the entries of sampler.schedule" in found["sampler.num_sampling_steps"]


def test_a_bad_schedule_is_refused_with_what_is_wrong_where(checked, tmp_path):
    (tmp_path / "bad.txt").write_text("[0.0, 0.5, 0.4]")
    assert "entry 2 is 0.4, not above entry 1, 0.5" in refusal(checked, "sampler.schedule=bad.txt")["sampler.schedule"]
    assert "cannot be read: No such file" in refusal(checked, "sampler.schedule=no.txt")["sampler.schedule"]


METHODS_WITHOUT = ("HeunDiscrete", "KDPM2AncestralDiscrete", "PNDM", "DDPM", "DEISMultistep", "DPMSolverSinglestep")


@pytest.mark.parametrize("method", METHODS_WITHOUT)
def test_methods_that_take_no_schedule_are_refused_by_name(checked, tmp_path, method):
    (tmp_path / "good.txt").write_text("[0.0, 0.5, 0.9]")
    found = refusal(checked, "sampler.schedule=good.txt", f"sampler.sample_method={method}")
    assert f"{method} takes no schedule; expected one of EulerAncestralDiscrete" in found["sampler.schedule"]


def test_noise_along_a_path_is_for_methods_that_can(checked):
    for method in ("DDPM", "KDPM2AncestralDiscrete"):
        found = refusal(checked, "sampler.noise=path", f"sampler.sample_method={method}")
        assert f"{method} draws noise that follows no path" in found["sampler.noise"]
    assert checked("sampler.noise=path", "sampler.sample_method=HeunDiscrete").config["sampler"]["noise"] == "path"


def test_the_shipped_weights_say_that_they_are(composed, tiny_checkpoint, tmp_path, monkeypatch):
    weights = tmp_path / "osp12"
    shutil.copytree(tiny_checkpoint, weights)
    for part in ("vae", "text_encoder"):
        shutil.copytree(tiny_checkpoint.parent / part, weights / part)
    monkeypatch.setattr(checkpoints, "EMBEDDED_FOLDER", tmp_path)
    run = composed("+recipe=osp12_w8a8")
    assert run.checkpoint.embedded and run.checkpoint.label.startswith("embedded little world (trained weights")
    assert run.config["model"]["checkpoint"] == str(weights)
    assert run.config["model"]["num_frames"] == 9  # by its defaults.yaml


def test_each_model_has_shipped_weights_of_its_own(composed, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "EMBEDDED_FOLDER", tmp_path)
    own = pipeline_folder(tmp_path / "sd3", "StableDiffusion3Pipeline")
    run = composed("model=sd3", "model.checkpoint=embedded")
    assert run.checkpoint.embedded and run.config["model"]["checkpoint"] == str(own)
    said = refusal(composed, "model=opensora12", "model.checkpoint=embedded")["model.checkpoint"]
    assert f"this installation lacks its weights, {tmp_path / 'opensora12'}" in said


def test_references_may_be_those_that_ship_with_the_weights(monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoints, "EMBEDDED_FOLDER", tmp_path)
    own = tmp_path / "opensora12"
    found = checkpoints.shipped(["embedded/a.png;b.png", None, "mine/embedded/a.png"], {"name": "opensora12"})
    assert found == [f"{own}/a.png;b.png", None, "mine/embedded/a.png"]


def test_an_installation_without_them_says_so(composed, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "EMBEDDED_FOLDER", tmp_path / "nowhere")
    with pytest.raises(Refused, match="this installation lacks its weights"):
        composed("+recipe=osp12_w8a8")


SEARCH = ("sampler.search=recording", "sampler.noise=path", "sampler.num_sampling_steps=50")


def test_a_search_of_a_schedule(checked):
    assert checked(*SEARCH).config["sampler"]["search"] == "recording"
    assert checked("+recipe=osp12_schedule").config["sampler"]["noise"] == "path"


@pytest.mark.parametrize("method", ["HeunDiscrete", "KDPM2AncestralDiscrete", "PNDM", "DDPM", "DEISMultistep",
                                    "DPMSolverSinglestep"])  # fmt: skip
def test_methods_that_no_schedule_can_be_searched_for_are_refused_by_name(checked, method):
    found = refusal(checked, *SEARCH[::2], f"sampler.sample_method={method}")
    assert f"{method} takes no schedule; expected one of EulerAncestralDiscrete" in found["sampler.search"]


def test_a_search_needs_noise_that_is_the_same_for_all_schedules(checked):
    assert "expected path" in refusal(checked, *SEARCH[::2])["sampler.noise"]
    checked(*SEARCH[::2], "sampler.sample_method=DDIM")


def test_a_search_has_more_steps_to_choose_from_than_it_keeps(checked, tmp_path):
    assert (
        "expected 2 to 99"
        in refusal(checked, *SEARCH[:2], "sampler.num_sampling_steps=100")["sampler.num_sampling_steps"]
    )
    (tmp_path / "mine.txt").write_text("[0.01, 0.5, 0.9]")
    assert "not both" in refusal(checked, *SEARCH[:2], "sampler.schedule=mine.txt")["sampler.schedule"]
    assert "no schedule is searched" in refusal(checked, "sampler.save_dir=there")["sampler.save_dir"]


def test_align_your_steps_has_keys_of_its_own(checked, tmp_path):
    ays = ("sampler.search=ays", "sampler.num_sampling_steps=50")
    assert checked(*ays, "sampler.neighbour_type=random").config["sampler"]["monte_carlo_iters"] == 5
    for argument in ("sampler.neighbour_type=uniform", "sampler.monte_carlo_iters=5", "sampler.videos_path=videos"):
        for search in (SEARCH, ()):
            found = refusal(checked, argument, *search)
            assert "belongs to sampler.search=ays" in found[argument.partition("=")[0]]
    assert "no folder with .mp4" in refusal(checked, *ays, "sampler.videos_path=videos")["sampler.videos_path"]
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").touch()
    assert checked(*ays, "sampler.videos_path=videos").config["sampler"]["videos_path"] == str(tmp_path / "videos")
    assert "at least 3" in refusal(checked, ays[0], "sampler.num_sampling_steps=2")["sampler.num_sampling_steps"]


# the benchmark


def test_a_benchmark_times_something_and_all_that_is_asked_for(checked):
    assert refusal(checked, "timing.benchmark=true", "timing.repeats=0").keys() == {"timing.repeats"}
    found = refusal(checked, "timing.benchmark=true", "cache.policy=dit_cache", "cache.ratio=1.3")
    assert "timing.benchmark times no cache yet" in found["cache.policy"]
