import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import BatchEncoding, T5EncoderModel

from runner.generation.media import save_mp4
from runner.model.opensora12 import OpenSora12Pipeline, OpenSora12Transformer, OpenSora12VAE, RFlowScheduler
from runner.model.opensora12 import pipeline as room
from runner.model.opensora12 import vae as vae_room
from runner.model.opensora12.references import read_references

DATA = Path(__file__).parents[2] / "data/opensora12"
E2E = json.loads((DATA / "e2e_case.json").read_text())
VECTORS = load_file(DATA / "e2e_case.safetensors")
LIMIT = 2e-3  # the vectors' README
SMALL = {"num_frames": 17, "height": 16, "width": 24, "num_inference_steps": 2, "max_sequence_length": 12}


class Words:
    """A tokenizer of 12 tokens: the vectors' ids of their prompts, and of any other text a number for each word."""

    def __call__(self, texts, return_tensors=None, **_):
        known = [text for text in texts if text in E2E["prompts_per_loop"]]
        rows = VECTORS["in.t5_input_ids"]
        ids = [
            [i for i in rows[E2E["prompts_per_loop"].index(text)].tolist() if i]
            if text in known
            else [*(2 + len(word) for word in text.split()), 1][-12:]
            for text in texts
        ]
        if return_tensors is None:
            return SimpleNamespace(input_ids=ids)
        padded = torch.tensor([row + [0] * (12 - len(row)) for row in ids])
        return BatchEncoding({"input_ids": padded, "attention_mask": (padded != 0).long()})


@pytest.fixture(scope="module")
def parts():
    return {
        "vae": OpenSora12VAE.from_pretrained(DATA / "vae3d"),
        "text_encoder": T5EncoderModel.from_pretrained(DATA / "t5").eval(),
        "tokenizer": Words(),
        "transformer": OpenSora12Transformer.from_pretrained(DATA / "stdit3"),
    }


@pytest.fixture
def pipeline(parts):
    pipeline = OpenSora12Pipeline(**parts, scheduler=RFlowScheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def call(pipeline, prompt="a calm sea", seed=7, **other):
    generators = [torch.Generator().manual_seed(s) for s in ([seed] if isinstance(seed, int) else seed)]
    options = {**SMALL, "generator": generators if len(generators) > 1 else generators[0], "output_type": "latent"}
    return pipeline(prompt, **{**options, **other}).frames


def image(shade=0.5, height=16, width=24):
    ramp = torch.linspace(-shade, shade, width).expand(3, height, width)
    return ramp.clone()


def test_the_text_encoder_of_the_vectors():
    cases = load_file(DATA / "t5_cases.safetensors")
    encoder = T5EncoderModel.from_pretrained(DATA / "t5").eval()
    with torch.no_grad():
        state = encoder(cases["t5.in.input_ids"], attention_mask=cases["t5.in.attention_mask"])[0]
    assert (state - cases["t5.out.last_hidden_state"]).abs().max() <= 4e-5


def test_the_reference_s_video_of_two_loops(pipeline, monkeypatch):
    draws = iter([VECTORS[key] for key in sorted(VECTORS) if key.startswith("in.noise.")])
    shapes, latents, clips = [], [], []

    def draw(shape, **_):
        noise = next(draws)
        shapes.append(list(noise.shape))
        assert tuple(shape) == tuple(noise.shape)
        return noise

    monkeypatch.setattr(room, "randn_tensor", draw)
    monkeypatch.setattr(vae_room, "randn_tensor", draw)
    decode = pipeline.decode_latents

    def keep(z, frames):
        latents.append(z)
        clips.append(decode(z, frames))
        return clips[-1]

    monkeypatch.setattr(pipeline, "decode_latents", keep)
    prompt = '|0|a calm sea|1|a stormy sea{"mask_strategy": "0"}'
    options = {name: E2E[name] for name in ("num_frames", "height", "width", "fps", "loop", "align", "aes")}
    options |= {name: E2E[name] for name in ("condition_frame_length", "condition_frame_edit")}
    options |= {"num_inference_steps": E2E["num_sampling_steps"], "guidance_scale": E2E["cfg_scale"]}
    video = pipeline(
        prompt, reference_path=[[VECTORS["in.ref_image"]]], max_sequence_length=12, output_type="pt", **options
    ).frames
    assert next(draws, None) is None and shapes == E2E["noise_order"]
    for turn, z in enumerate(latents):
        assert (z - VECTORS[f"out.latent.{turn}"]).abs().max() <= LIMIT
    joined = torch.cat([clips[0], clips[1][:, :, 17:]], dim=2)
    assert (joined[0] - VECTORS["out.video"]).abs().max() <= LIMIT
    expected = (VECTORS["out.video"].clamp(-1, 1) + 1) / 2
    assert video.shape == (1, 51, 3, 16, 24) and (video[0].transpose(0, 1) - expected).abs().max() <= LIMIT


def test_the_prompts_of_the_loops_are_the_reference_s(pipeline, monkeypatch):
    said = []
    encode = pipeline.encode_prompt
    monkeypatch.setattr(
        pipeline, "encode_prompt", lambda prompts, length: said.extend(prompts) or encode(prompts, length)
    )
    call(pipeline, "|0|a calm sea|1|a stormy sea", loop=2, num_inference_steps=1)
    assert said == E2E["prompts_per_loop"]


def test_a_seed_makes_a_video_again_in_whatever_batch(pipeline):
    alone = [call(pipeline, prompt, seed) for prompt, seed in (("a calm sea", 3), ("a long way home", 4))]
    both = call(pipeline, ["a calm sea", "a long way home"], [3, 4])
    assert torch.equal(alone[0], call(pipeline, seed=3)) and not torch.equal(alone[0], call(pipeline, seed=4))
    assert (both - torch.cat(alone)).abs().max() <= 1e-4


def test_branches_and_embeddings(pipeline):
    joint = call(pipeline)
    assert (call(pipeline, guidance_batch="separate") - joint).abs().max() <= 1e-4
    embeds, mask = pipeline.encode_prompt(["a calm sea aesthetic score: 6.5."], 12)
    for form in (embeds, embeds[:, None]):
        assert (call(pipeline, None, prompt_embeds=form, prompt_attention_mask=mask) - joint).abs().max() <= 1e-5
    assert not torch.allclose(call(pipeline, aes=None), joint, atol=1e-3)


@pytest.mark.parametrize("strategy", ["0", [{"reference": 0, "length": 1}]])
def test_an_image_is_the_first_frame(strategy, pipeline):
    z = call(pipeline, num_frames=34, reference_path=[[image()]], mask_strategy=[strategy], align=5)
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        encoded = pipeline.vae.encode(image()[None, :, None], draw)
    assert torch.equal(z[:, :, :1], encoded)


def test_first_and_last_frame_and_what_lies_between(pipeline):
    options = {"reference_path": [[image(0.2), image(0.8)]], "mask_strategy": ["0;0,1,0,-1,1"], "align": None}
    z = call(pipeline, num_frames=34, **options)
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        first, last = (pipeline.vae.encode(image(shade)[None, :, None], draw)[:, :, 0] for shade in (0.2, 0.8))
    assert torch.equal(z[:, :, 0], first) and torch.equal(z[:, :, -1], last)


def test_an_edit_begins_where_the_ratio_says(pipeline):
    clip = image()[:, None].expand(-1, 17, -1, -1)
    options = {"reference_path": [[clip]], "num_inference_steps": 4}
    kept, little, much = (call(pipeline, mask_strategy=[f"0,0,0,0,5,{ratio}"], **options) for ratio in (0.0, 0.05, 0.9))
    assert 0 < (little - kept).norm() < (much - kept).norm()


def test_files_as_references(pipeline, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (20, 48, 40, 3), np.uint8)
    Image.fromarray(pixels[0]).save(tmp_path / "a.png")
    save_mp4(pixels, tmp_path / "b.mp4", 24)
    still, clip = read_references(f"{tmp_path}/a.png;{tmp_path}/b.mp4", 16, 24)
    assert still.shape == (3, 1, 16, 24) and clip.shape == (3, 20, 16, 24)
    assert still.abs().max() <= 1 and clip.abs().max() <= 1
    # the middle of the 40 x 48 frame, which is as wide as the video and taller
    resized = Image.fromarray(pixels[0]).resize((24, 29), Image.Resampling.BICUBIC)
    expected = torch.from_numpy(np.asarray(resized)[6:22].copy()).permute(2, 0, 1) / 127.5 - 1
    assert torch.allclose(still[:, 0], expected, atol=1e-6)
    by_json = call(pipeline, f'a calm sea{{"reference_path": "{tmp_path}/a.png", "mask_strategy": "0"}}')
    by_key = call(pipeline, reference_path=f"{tmp_path}/a.png", mask_strategy="0")
    assert torch.equal(by_json, by_key) and not torch.equal(by_key, call(pipeline))


def test_sizes_by_name(pipeline):
    size = {"height": None, "width": None, "resolution": "144p", "num_inference_steps": 1, "guidance_scale": 1.0}
    z = call(pipeline, **size, num_frames="2s", tables="enflame")
    assert z.shape == (1, 4, 12, 18, 32)
    z = call(pipeline, **size, aspect_ratio="3:4", num_frames=1)
    assert z.shape == (1, 4, 1, 20, 27)


def test_stills_are_told_so_and_given_out_as_one_frame(pipeline):
    seen = []
    hook = pipeline.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["fps"]), with_kwargs=True
    )
    frames = call(pipeline, num_frames=1, output_type="np")
    call(pipeline, num_frames=17, fps=8)
    hook.remove()
    assert frames.shape == (1, 1, 16, 24, 3) and frames.dtype == np.uint8
    assert seen[0].tolist() == [120] and seen[-1].tolist() == [8]


def test_odd_sizes_lose_what_the_latents_cannot_hold(pipeline):
    assert call(pipeline, height=30, width=44, num_frames=5, output_type="np").shape == (1, 5, 24, 40, 3)


def test_steps_are_called_back_and_may_be_changed(pipeline):
    seen = []

    def keep(_, index, timestep, tensors):
        seen.append((index, float(timestep)))
        return {"latents": torch.zeros_like(tensors["latents"])}

    z = call(pipeline, loop=2, callback_on_step_end=keep, callback_on_step_end_tensor_inputs=["latents", "noise_pred"])
    assert [index for index, _ in seen] == [0, 1, 2, 3] and seen[0][1] == seen[2][1] == pytest.approx(1000)
    assert not z.any()
    steps = []
    given = {"timesteps": [900, 300], "callback_on_step_end": lambda *a: steps.append(float(a[2])) or {}}
    call(pipeline, **given)
    assert steps == [900, 300]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_samples(dtype):
    pipeline = OpenSora12Pipeline(
        vae=OpenSora12VAE.from_pretrained(DATA / "vae3d", torch_dtype=dtype),
        text_encoder=T5EncoderModel.from_pretrained(DATA / "t5", dtype=dtype).eval(),
        tokenizer=Words(),
        transformer=OpenSora12Transformer.from_pretrained(DATA / "stdit3", torch_dtype=dtype),
        scheduler=RFlowScheduler(),
    )
    pipeline.set_progress_bar_config(disable=True)
    frames = call(pipeline, output_type="pt", num_frames=5, height=240, width=426, num_inference_steps=1)
    assert frames.isfinite().all() and frames.std() > 0.01


def test_saved_and_loaded_again(pipeline, tmp_path):
    pipeline.tokenizer = pipeline.text_encoder = None
    saved = OpenSora12Pipeline(**{name: getattr(pipeline, name) for name in pipeline.components})
    saved.save_pretrained(tmp_path)
    again = OpenSora12Pipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    text = {"prompt_embeds": torch.ones(1, 12, 32), "prompt_attention_mask": torch.ones(1, 12, dtype=torch.long)}
    assert torch.equal(call(again, None, **text), call(saved, None, **text))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"resolution": "145p", "height": None, "width": None}, "resolution is '145p'"),
        ({"aspect_ratio": "2:3:4", "height": None, "width": None}, "aspect_ratio is '2:3:4'"),
        ({"height": None}, "height and width are None and 24; give both"),
        ({"height": 8}, "give both, of 16 pixels or more"),
        ({"num_frames": "3s"}, "num_frames is '3s'"),
        ({"mask_strategy": "0,x"}, "not of the form"),
        ({"mask_strategy": "0"}, "asks for reference 0 of 0"),
        ({"mask_strategy": ["0", "0"]}, "mask_strategy has 2 entries for 1 prompts"),
        ({"reference_path": "/nowhere/a.png"}, "/nowhere/a.png: there is no such file"),
        ({"reference_path": "https://example.com/a.png"}, "nothing is fetched from a network"),
        ({"reference_path": str(DATA / "README.md")}, "cannot be read as an image"),
        ({"reference_path": [[torch.full((3, 16, 24), 2.0)]]}, r"reaches 2; its values must lie in \[-1, 1\]"),
        ({"reference_path": [[torch.zeros(4, 16, 24)]]}, "expected"),
        ({"loop": 2, "condition_frame_length": 3}, "3 latent frames are no whole chunks of 5"),
        ({"loop": 2, "condition_frame_length": 10}, "condition_frame_length 10 of 5"),
        ({"latents": torch.zeros(1, 4, 5, 2, 2)}, "latents is"),
        ({"output_type": "pil"}, "output_type is 'pil'"),
        ({"guidance_batch": "both"}, "guidance_batch is 'both'"),
        ({"generator": [torch.Generator()] * 2}, "2 generators were given for 1 prompts"),
        ({"max_sequence_length": 0, "prompt": None}, "pass prompt or prompt_embeds"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(arguments, says, pipeline):
    hook = pipeline.text_encoder.register_forward_pre_hook(lambda *_: pytest.fail("the text encoder ran"))
    try:
        with pytest.raises(ValueError, match=says):
            call(pipeline, **{"prompt": "a calm sea", **arguments})
    finally:
        hook.remove()
