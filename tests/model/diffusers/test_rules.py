"""Which folders are pipelines that can be run, said from their JSON and diffusers' source, without importing it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from support.pipeline_folder import folder

from runner.model.diffusers import rules
from runner.model.diffusers.signature import REQUIRED, call
from runner.model.sd3 import rules as sd3


@pytest.mark.parametrize(
    ("pipeline", "parts", "says"),
    [
        ("FluxPipeline", {}, None),
        ("WanPipeline", {"image_encoder": [None, None], "transformer_2": [None, None]}, None),
        ("StableDiffusionXLPipeline", {"transformer": [None, None], "unet": ["diffusers", "UNet"]}, "it has a unet"),
        ("StableAudioPipeline", {"transformer": [None, None]}, "it has none"),
        ("FluxImg2ImgPipeline", {}, "which takes image: expected text to images or to a video"),
        ("WanImageToVideoPipeline", {}, "which takes image"),
        ("WanVACEPipeline", {}, "which takes reference_images, video, mask"),
        ("WanPipeline", {"transformer_2": ["diffusers", "WanTransformer3DModel"]}, "with two transformers"),
        ("DiTPipeline", {}, "which takes no prompt"),
        ("NoSuchPipeline", {}, "which the installed diffusers does not have"),
    ],
)
def test_folders_of_pipelines(tmp_path, pipeline, parts, says):
    found = list(rules.checkpoint_faults(folder(tmp_path / "p", pipeline, **parts)))
    assert (found == []) if says is None else (len(found) == 1 and says in found[0]), found


def test_folders_that_lack_something(tmp_path):
    assert "has no model_index.json" in next(rules.checkpoint_faults(tmp_path))
    whole = folder(tmp_path / "p", "FluxPipeline")
    (whole / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    (whole / "scheduler" / "scheduler_config.json").write_text("[]")
    weights, solver = rules.checkpoint_faults(whole)
    assert "has no weights" in weights and "has no scheduler_config.json that names its class" in solver
    (whole / "scheduler" / "scheduler_config.json").write_text("{}")
    assert len(list(rules.checkpoint_faults(whole))) == 1  # model_index.json names the solver, too
    (whole / "model_index.json").write_text("{")
    assert "cannot be read" in next(rules.checkpoint_faults(whole))


def test_code_in_a_folder_is_not_run(tmp_path):
    mine = folder(tmp_path / "p", "FluxPipeline", vae=["my_vae", "Mine"])
    (mine / "my_vae.py").write_text("raise SystemExit")
    assert "code that lies in a checkpoint is not run" in next(rules.checkpoint_faults(mine))


def test_what_a_pipeline_says_of_itself_stands_where_nobody_sets_it(tmp_path):
    assert rules.defaults(folder(tmp_path / "wan", "WanPipeline", "UniPCMultistepScheduler")) == {
        "sampler.sample_method": "UniPCMultistep",
        "sampler.num_sampling_steps": 50,
        "sampler.guidance_scale": 5.0,
        **{"model.num_frames": 81, "model.height": 480, "model.width": 832, "model.max_sequence_length": 512},
    }
    flux = rules.defaults(folder(tmp_path / "flux", "FluxPipeline"))
    assert flux["sampler.guidance_scale"] == 3.5 and "model.height" not in flux


def test_keys_that_the_pipeline_does_not_take(tmp_path):
    model = {"checkpoint": str(folder(tmp_path / "p", "FluxPipeline")), "height": 64, "num_frames": None}
    assert list(rules.faults(model | {"call": {"true_cfg_scale": 2.0}})) == []
    assert list(rules.faults(model | {"num_frames": 9})) == [
        ("num_frames", "expected null: FluxPipeline takes no num_frames")
    ]
    found = dict(rules.faults(model | {"call": {"true_cfg": 2.0}}))
    assert found["call"].startswith("FluxPipeline takes no true_cfg; it takes prompt_2") and len(found) == 1
    for name in ("latents", "height"):
        assert "is not for call to set" in dict(rules.faults(model | {"call": {name: 1}}))["call"]
    assert dict(rules.faults({"template": "x"})) == {"template": "expected a text with one {} where the prompt goes"}


def test_stable_diffusion_3_is_one_pipeline(tmp_path):
    theirs, other = (folder(tmp_path / name, name) for name in (sd3.PIPELINE, "FluxPipeline"))
    assert list(sd3.checkpoint_faults(theirs)) == []
    assert "expected a StableDiffusion3Pipeline (model=diffusers takes others)" in next(sd3.checkpoint_faults(other))
    assert sd3.defaults(theirs) == {"sampler.sample_method": "FlowMatchEulerDiscrete"}


def test_the_third_text_encoder_counts_only_where_it_is_used(tmp_path):
    whole = folder(tmp_path / "p", sd3.PIPELINE, text_encoder_3=["transformers", "T5EncoderModel"])
    (whole / "text_encoder_3").mkdir()
    model = {"checkpoint": str(whole), "text_encoder_3": True}
    assert sd3.parts(model).keys() - sd3.parts(model | {"text_encoder_3": False}).keys() == {"text_encoder_3"}


def test_the_source_says_what_python_says():
    import inspect

    import diffusers

    for name in ("FluxPipeline", "WanPipeline", "PixArtSigmaPipeline", "CogVideoXPipeline", "LTXPipeline"):
        found = call(name)
        assert found is not None
        parameters = dict(inspect.signature(getattr(diffusers, name).__call__).parameters)
        del parameters["self"]
        parameters.pop("kwargs", None)
        assert list(found) == list(parameters)
        for key, parameter in parameters.items():
            if isinstance(found[key], int | float | str | None):
                assert parameter.default == found[key]
            if found[key] is REQUIRED:
                assert parameter.default is inspect.Parameter.empty


def test_blocks_are_counted_in_the_headers_of_the_weights(tmp_path):
    whole = folder(tmp_path / "p", "FluxPipeline")
    model = {"checkpoint": str(whole), "blocks": None}
    with pytest.raises(ValueError, match="no safetensors file"):  # the file is empty
        rules.blocks(model)
    names = ["x.weight", *(f"{kind}.{i}.proj.{t}" for kind, n in (("a", 2), ("b", 3)) for i in range(n) for t in "wb")]
    save_file({name: torch.zeros(1) for name in names}, whole / "transformer/diffusion_pytorch_model.safetensors")
    assert rules.blocks(model) == 5 and rules.blocks(model | {"blocks": ["b"]}) == 3
    shards = {"weight_map": dict.fromkeys([*names, "a.2.proj.w"], "shard.safetensors")}
    (whole / "transformer/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(shards))
    assert rules.blocks(model) == 6


def test_nothing_of_it_imports_torch_or_diffusers(tmp_path):
    asked = folder(tmp_path / "p", "WanPipeline")
    code = (
        "import sys; from pathlib import Path; from runner.model.sd3 import rules as sd3\n"
        f"from runner.model.diffusers import rules; rules.defaults(Path({str(asked)!r}))\n"
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
