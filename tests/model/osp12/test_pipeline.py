import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from runner.model import text as text_room
from runner.model.osp12 import OSP12VAE, OSP12Pipeline, OSP12Transformer
from runner.model.osp12.loading import load_text_encoder
from runner.sampler import SAMPLE_METHODS, make_scheduler

DATA = Path(__file__).parents[2] / "data/osp12"
ARGS = json.loads((DATA / "pipeline/args.json").read_text())
TEXT = json.loads((DATA / "pipeline/text.json").read_text())
METHODS = {
    "ddim": "DDIM",
    "eulera": "EulerAncestralDiscrete",
    "euler": "EulerDiscrete",
    "ddim3": "DDIM",
    "ddim5": "DDIM",
}
SMALL = {"num_frames": 5, "height": 32, "width": 32, "num_inference_steps": 2, "max_sequence_length": 16}


@pytest.fixture(scope="module")
def cases():
    return load_file(DATA / "pipeline/cases.safetensors")


@pytest.fixture(scope="module")
def parts():
    text_encoder, tokenizer = load_text_encoder(str(DATA / "text_encoder"))
    return {
        "vae": OSP12VAE.from_pretrained(DATA / "vae_a/vae"),
        "text_encoder": text_encoder.eval(),
        "tokenizer": tokenizer,
        "transformer": OSP12Transformer.from_pretrained(DATA / "dit_a/model_ema"),
    }


def make(parts, method="EulerAncestralDiscrete", **other):
    pipeline = OSP12Pipeline(**{**parts, "scheduler": make_scheduler(method), **other})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def pipeline(parts):
    return make(parts)


def seeded(*seeds):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return generators if len(seeds) > 1 else generators[0]


def call(pipeline, prompt="a red boat", seed=7, **other):
    return pipeline(prompt, **{**SMALL, "generator": seeded(seed), "output_type": "latent", **other}).frames


def record(transformer):
    """The keyword arguments of each call from now on, and the hook that collects them."""
    calls = []
    return calls, transformer.register_forward_pre_hook(lambda _, args, kw: calls.append((args, kw)), with_kwargs=True)


@pytest.mark.parametrize("case", ARGS)
def test_the_reference_s_videos(case, cases, parts, monkeypatch):
    get = {key.split(".")[1]: value for key, value in cases.items() if key.startswith(f"{case}.")}
    pipeline = make(parts, METHODS[case.split("_")[0]])
    arguments = {k: v for k, v in ARGS[case].items() if k not in ("num_images_per_prompt", "mask_feature")}
    steps, predictions = [], []

    def noise(shape, **_):
        return get["step_noise"][len(steps)].reshape(shape)

    if "step_noise" in get:
        monkeypatch.setattr(sys.modules[type(pipeline.scheduler).__module__], "randn_tensor", noise)

    def keep(_pipeline, index, _timestep, tensors):
        assert index == len(steps)
        steps.append(tensors["latents"])
        predictions.append(tensors["noise_pred"])
        return tensors

    calls, hook = record(pipeline.transformer)
    video = pipeline(
        **arguments,
        latents=get["latents_init"],
        callback_on_step_end=keep,
        callback_on_step_end_tensor_inputs=["latents", "noise_pred"],
    ).frames
    hook.remove()
    assert len(steps) == len(get["latents_steps"]) == len(calls)
    for ours, expected in zip(steps, get["latents_steps"], strict=True):
        assert (ours - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert video.dtype == np.uint8 and video.shape == tuple(get["video_uint8"].shape)
    assert np.abs(video.astype(int) - get["video_uint8"].numpy().astype(int)).max() <= 1

    shared = {key.split(".")[1]: value for key, value in cases.items() if key.startswith("ddim5.")}
    text = get if "prompt_embeds_cat" in get else shared
    names = {"hidden_states", "timestep", "encoder_hidden_states", "attention_mask", "encoder_attention_mask"}
    for (args, first), timesteps in zip(calls, get["model_timesteps"], strict=True):
        assert not args and set(first) == {*names, "return_dict"}
        assert torch.allclose(first["timestep"].double(), timesteps, rtol=1e-6)
        assert torch.allclose(first["encoder_hidden_states"], text["prompt_embeds_cat"], atol=1e-5)
        assert torch.equal(first["encoder_attention_mask"], text["prompt_mask_cat"])
    assert torch.allclose(calls[0][1]["hidden_states"], get["model_input_first"], rtol=1e-5)
    raw = get["noise_pred_first"]
    scale = arguments["guidance_scale"]
    guided = raw if len(raw) == 1 else raw[:1] + scale * (raw[1:] - raw[:1])
    assert (predictions[0] - guided).abs().max() <= 1e-4 * guided.abs().max()


def test_embeddings_are_the_reference_s(pipeline):
    expected = load_file(DATA / "pipeline/text_embeds.safetensors")
    for text, name in zip(TEXT, ("prompt", "neg"), strict=False):
        embeds, mask = pipeline.encode_prompt(text["input"], 48)
        assert (embeds - expected[f"{name}_embeds"]).abs().max() <= 1e-5
        assert torch.equal(mask, expected[f"{name}_mask"])
        assert not embeds.is_inference()  # they may be trained with


@pytest.mark.parametrize("text", TEXT, ids=range(len(TEXT)))
def test_token_ids_are_the_reference_s(text, pipeline, monkeypatch):
    seen = []
    monkeypatch.setattr(pipeline.text_encoder, "forward", lambda ids, attention_mask: seen.append(ids) or (ids,))
    _, mask = pipeline.encode_prompt([text["input"]], 48)
    assert seen[0].tolist() == [text["input_ids"]] and mask.tolist() == [text["mask"]]


def test_cleaning_can_be_turned_off(pipeline):
    cleaned, raw = (pipeline.encode_prompt("(A boat)", 16, clean_caption=clean)[1].sum() for clean in (True, False))
    assert cleaned < raw


def test_a_prompt_that_is_cut_is_told(pipeline, monkeypatch):
    warnings = []
    monkeypatch.setattr(text_room.logger, "warning", warnings.append)
    pipeline.encode_prompt("a red boat", 48)
    assert not warnings
    pipeline.encode_prompt("a red boat on a blue lake", 4)
    assert len(warnings) == 1 and "a red boat on a blue lake" in warnings[0] and "cut to 4" in warnings[0]


@pytest.mark.parametrize("method", SAMPLE_METHODS)
def test_every_sample_method_runs_and_is_reproducible(method, parts):
    pipeline = make(parts, method)
    first, second, other = (call(pipeline, seed=seed, num_inference_steps=4) for seed in (7, 7, 8))
    assert first.shape == (1, 4, 2, 4, 4) and first.isfinite().all()
    assert torch.equal(first, second) and not torch.equal(first, other)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompt=st.text("abc xyz", min_size=1, max_size=12),
    negative=st.text("abc xyz", max_size=12),
    scale=st.floats(1.5, 9),
    seed=st.integers(0, 99),
)
def test_joint_and_separate_guidance_agree(pipeline, prompt, negative, scale, seed):
    joint, separate = (
        call(pipeline, prompt, seed, negative_prompt=negative, guidance_scale=scale, guidance_batch=batch)
        for batch in ("joint", "separate")
    )
    assert (joint - separate).abs().max() <= 1e-4 * joint.abs().max()


def test_separate_guidance_calls_the_model_once_a_branch_negative_first(pipeline):
    calls, hook = record(pipeline.transformer)
    call(pipeline, negative_prompt="b c", guidance_batch="separate", num_inference_steps=1)
    call(pipeline, negative_prompt="b c", num_inference_steps=1)
    call(pipeline, guidance_scale=1.0, num_inference_steps=1)
    hook.remove()
    negative, positive, joint, alone = (kw["encoder_attention_mask"] for _, kw in calls)
    assert torch.equal(torch.cat([negative, positive]), joint) and torch.equal(positive, alone)
    assert not torch.equal(negative, positive)
    assert all(kw["attention_mask"] is None for _, kw in calls)


@pytest.mark.parametrize("guidance_batch", ["joint", "separate"])
def test_each_prompt_of_a_batch_gets_what_it_would_get_alone(pipeline, guidance_batch):
    prompts, seeds = ["a red boat", "two", "a cat on a mat"], (3, 1, 2)
    options = {"guidance_batch": guidance_batch, "num_inference_steps": 3}
    together = call(pipeline, prompts, generator=seeded(*seeds), **options)
    for row, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        alone = call(pipeline, prompt, seed, **options)
        assert (together[row] - alone[0]).abs().max() <= 1e-5 * alone.abs().max()


def test_embeddings_stand_for_their_prompts(pipeline):
    expected = call(pipeline, negative_prompt="b c")
    embeds, mask = pipeline.encode_prompt("a red boat", 16)
    negative, negative_mask = pipeline.encode_prompt("b c", 16)
    given = {"prompt_embeds": embeds, "prompt_attention_mask": mask}
    given |= {"negative_prompt_embeds": negative, "negative_prompt_attention_mask": negative_mask}
    assert torch.equal(call(pipeline, None, **given), expected)
    assert torch.equal(call(pipeline, None, **{name: tensor[:, None] for name, tensor in given.items()}), expected)
    bare = make(pipeline.components, text_encoder=None, tokenizer=None)
    assert torch.equal(call(bare, None, **given), expected)
    with pytest.raises(ValueError, match="no text encoder"):
        call(bare)


def test_the_negative_prompt_is_padded_to_the_embeddings_given(pipeline):
    embeds, mask = pipeline.encode_prompt("a red boat", 16)
    given = {"prompt_embeds": embeds, "prompt_attention_mask": mask, "negative_prompt": "b c"}
    assert torch.equal(call(pipeline, None, max_sequence_length=512, **given), call(pipeline, negative_prompt="b c"))


def test_one_negative_prompt_serves_all_and_none_is_empty(pipeline):
    two = {"prompt": ["a red boat", "two"], "generator": seeded(1, 2)}
    first = call(pipeline, **two, negative_prompt="b c")
    two["generator"] = seeded(1, 2)
    assert torch.equal(first, call(pipeline, **two, negative_prompt=["b c", "b c"]))
    assert torch.equal(call(pipeline), call(pipeline, negative_prompt=""))


def test_output_types(pipeline):
    latents, frames, tensor = (call(pipeline, output_type=kind) for kind in ("latent", "np", "pt"))
    assert latents.shape == (1, 4, 2, 4, 4)
    assert isinstance(frames, np.ndarray) and frames.dtype == np.uint8 and frames.shape == (1, 5, 32, 32, 3)
    assert tensor.shape == (1, 5, 3, 32, 32) and 0 <= tensor.min() and tensor.max() <= 1
    assert np.array_equal((tensor * 255).to(torch.uint8).permute(0, 1, 3, 4, 2).numpy(), frames)
    with torch.no_grad():
        video = pipeline.vae.decode(latents / 0.18215)
    assert torch.equal((video / 2 + 0.5).clamp(0, 1).transpose(1, 2), tensor)
    (plain,) = pipeline("a red boat", **SMALL, generator=seeded(7), return_dict=False)
    assert np.array_equal(plain, frames)


def test_given_latents_are_noise_of_unit_variance_and_set_the_size(pipeline):
    latents = torch.randn(1, 4, 2, 4, 4, generator=seeded(7))
    free = {"num_frames": None, "height": None, "width": None}
    drawn = call(pipeline, guidance_scale=1.0, num_inference_steps=1)
    after = seeded(7)
    torch.randn(latents.shape, generator=after)  # the solver's own noise comes next
    given = call(pipeline, latents=latents, **free, guidance_scale=1.0, num_inference_steps=1, generator=after)
    assert torch.equal(given, drawn)


def test_the_size_defaults_to_what_the_transformer_was_trained_for(pipeline, monkeypatch):
    calls, hook = record(pipeline.transformer)
    pipeline.transformer.register_to_config(sample_size=[4, 6])
    call(pipeline, num_frames=None, height=None, width=None, num_inference_steps=1)
    pipeline.transformer.register_to_config(sample_size=[8, 10])
    hook.remove()
    assert calls[0][1]["hidden_states"].shape == (2, 4, 3, 4, 6)


def test_only_the_first_half_of_a_doubled_output_is_the_noise(pipeline, parts):
    single = parts["transformer"]
    double = OSP12Transformer(**{**single.config, "out_channels": 8}).eval()
    state = dict(single.state_dict())
    for key in ("proj_out.weight", "proj_out.bias"):  # channels are the fastest axis of a patch
        old = state[key].unflatten(0, (4, 4))
        state[key] = torch.cat([old, torch.full_like(old, 9.0)], dim=1).flatten(0, 1)
    double.load_state_dict(state)
    assert torch.allclose(call(make(parts, transformer=double)), call(pipeline), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_latents_stay_in_the_model_s_dtype(dtype, tiny_checkpoint):
    root = tiny_checkpoint.parent
    text_encoder, tokenizer = load_text_encoder(str(root / "text_encoder"), dtype)
    transformer = OSP12Transformer.from_pretrained(tiny_checkpoint, torch_dtype=dtype)
    vae = OSP12VAE.from_pretrained(root / "vae", torch_dtype=dtype)
    pipeline = make(dict(vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, transformer=transformer))
    dtypes = []

    def keep(_pipeline, _index, _timestep, tensors):
        dtypes.append(tensors["latents"].dtype)

    latents = call(pipeline, callback_on_step_end=keep)
    assert dtypes == [dtype] * 2 and latents.isfinite().all()
    if dtype == torch.bfloat16:  # convolutions in float16 take seconds on a CPU
        assert pipeline.decode_latents(latents).dtype == dtype


def test_a_callback_can_replace_the_latents(pipeline):
    def zero(_pipeline, _index, _timestep, tensors):
        return {"latents": torch.zeros_like(tensors["latents"])}

    assert not call(pipeline, callback_on_step_end=zero).any()


def test_a_list_of_timesteps_for_schedulers_that_take_one(parts):
    seen = []

    def keep(_pipeline, _index, timestep, _tensors):
        seen.append(float(timestep))

    call(make(parts, "EulerDiscrete"), timesteps=[900, 500, 100], callback_on_step_end=keep)
    assert seen == [900, 500, 100]
    for method in ("DDIM", "PNDM"):
        with pytest.raises(ValueError, match=f"{method}Scheduler takes no list of timesteps"):
            call(make(parts, method), timesteps=[900, 500, 100])


EMBEDS, MASK = torch.zeros(1, 16, 32), torch.ones(1, 16)
GIVEN = {"prompt": None, "prompt_embeds": EMBEDS, "prompt_attention_mask": MASK}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": None}, "pass prompt or prompt_embeds"),
        ({"prompt_embeds": EMBEDS, "prompt_attention_mask": MASK}, "prompt or prompt_embeds, not both"),
        ({"prompt": []}, r"prompt is \[\]; expected a string or a list"),
        ({"prompt": ["a", 2]}, "expected a string or a list of strings"),
        ({"prompt": None, "prompt_embeds": EMBEDS}, "prompt_embeds needs prompt_attention_mask"),
        ({"prompt_attention_mask": MASK}, "prompt_attention_mask belongs to prompt_embeds"),
        ({**GIVEN, "prompt_embeds": EMBEDS[0]}, r"prompt_embeds is \[16, 32\]"),
        ({**GIVEN, "prompt_attention_mask": MASK[:, 1:]}, r"prompt_attention_mask is \[1, 15\]"),
        ({"negative_prompt": "x", "negative_prompt_embeds": EMBEDS}, "negative_prompt_embeds, not both"),
        ({"negative_prompt_embeds": EMBEDS}, "negative_prompt_embeds needs negative_prompt_attention_mask"),
        ({"negative_prompt": ["a", "b", "c"]}, "negative_prompt has 3 entries for 1 prompts"),
        (
            {**GIVEN, "negative_prompt_embeds": EMBEDS[:, 1:], "negative_prompt_attention_mask": MASK[:, 1:]},
            r"different lengths: \[15, 16\] tokens",
        ),
        ({"generator": seeded(1, 2)}, "2 generators were given for 1 prompts"),
        ({"num_frames": 8}, "num_frames is 8: .*5 and 9"),
        ({"num_frames": -3}, "num_frames is -3"),
        ({"height": 40}, "height is 40: .*32 and 48"),
        ({"width": 24, "num_frames": 6}, "num_frames is 6.*width is 24"),
        ({"width": 0}, "width is 0: expected a positive number"),
        ({"latents": torch.zeros(1, 4, 2, 4, 6)}, r"latents is \[1, 4, 2, 4, 6\]; expected \[1, 4, 2, 4, 4\]"),
        ({"latents": torch.zeros(4, 2, 4, 4)}, "latents is"),
        ({"output_type": "pil"}, "output_type is 'pil'; it must be one of latent, np, pt"),
        ({"guidance_batch": "both"}, "guidance_batch is 'both'"),
        ({"callback_on_step_end_tensor_inputs": ["x"]}, "callback_on_step_end_tensor_inputs is 'x'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_before_anything_runs(pipeline, arguments, message, monkeypatch):
    monkeypatch.setattr(pipeline.text_encoder, "forward", None)
    monkeypatch.setattr(pipeline.transformer, "forward", None)
    with pytest.raises(ValueError, match=message):
        call(pipeline, **{"prompt": "a red boat", **arguments})


def test_a_saved_pipeline_is_read_again(pipeline, tmp_path):
    pipeline.transformer = pipeline.transformer  # what somebody does who exchanged it
    pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["transformer"] == ["runner.model.osp12", "OSP12Transformer"]
    again = OSP12Pipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert type(again.scheduler) is type(pipeline.scheduler)
    assert torch.equal(call(again), call(pipeline))
