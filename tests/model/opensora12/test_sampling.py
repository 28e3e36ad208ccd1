import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from runner.model.opensora12 import (
    OpenSora12Transformer,
    RFlowScheduler,
    apply_mask_strategy,
    image_size,
    rflow_sample,
    sampling,
    sizes,
    timesteps,
)

DATA = Path(__file__).parents[2] / "data/opensora12"
OPTIONS = json.loads((DATA / "rflow_cases.json").read_text())
VECTORS = load_file(DATA / "rflow_cases.safetensors")
SCHEDULES = json.loads((DATA / "utils.json").read_text())["timesteps"]
LIMIT = 2e-3  # the vectors' README


@pytest.fixture(scope="module")
def model():
    return OpenSora12Transformer.from_pretrained(DATA / "stdit3")


def vectors(case):
    return {key.removeprefix(f"{case}."): value for key, value in VECTORS.items() if key.startswith(f"{case}.")}


def conditioned(case):
    """Latents and mask as the case's mask strategy makes them."""
    given, options = vectors(case), OPTIONS[case]
    z = given["in.z_noise"]
    refs = [[given[key] for key in sorted(given) if key.startswith(f"in.ref.{row}.")] for row in range(len(z))]
    return apply_mask_strategy(z, refs, options["mask_strategy"], options["loop_i"], options["align"])


def sample(model, case, **other):
    given, options = vectors(case), OPTIONS[case]
    names = ("num_frames", "height", "width", "fps", "num_sampling_steps", "cfg_scale")
    names += ("use_timestep_transform", "use_discrete_timesteps")
    z, frame_mask = conditioned(case)
    arguments = {"z": z, "y": given["in.y"], "y_mask": given["in.y_mask"], "null_y": model.y_embedder.y_embedding}
    arguments |= {"frame_mask": frame_mask, "step_noise": given.get("in.step_noise")}
    return rflow_sample(model, **arguments | {name: options[name] for name in names} | other)


@pytest.mark.parametrize("case", OPTIONS)
def test_the_reference_s_latents_step_by_step(case, model):
    given, calls, outputs = vectors(case), [], []
    hooks = [
        model.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True),
        model.register_forward_hook(lambda _, args, output: outputs.append(output[0])),
    ]
    latent = sample(model, case)
    for hook in hooks:
        hook.remove()
    assert (latent - given["out.latent"]).abs().max() <= LIMIT
    assert len(calls) == len(given["out.timesteps"])
    for step, (args, call) in enumerate(calls):
        assert not args
        assert torch.allclose(call["timestep"].reshape(2, -1)[0], given["out.timesteps"][step].float(), rtol=1e-6)
        assert (call["x"].chunk(2)[0] - given["out.z_at_step"][step]).abs().max() <= LIMIT
        assert (outputs[step][:, :4] - given["out.pred_at_step"][step]).abs().max() <= LIMIT
        if "out.x_mask_at_step" in given:
            assert torch.equal(call["x_mask"].chunk(2)[1], given["out.x_mask_at_step"][step])
        else:
            assert "x_mask" not in call


@pytest.mark.parametrize("case", [case for case in OPTIONS if OPTIONS[case]["mask_strategy"]])
def test_the_reference_s_masks(case):
    z, mask = conditioned(case)
    given = vectors(case)
    assert torch.equal(z, given["in.z_after_mask_strategy"]) and torch.equal(mask, given["in.frame_mask"])


@pytest.mark.parametrize("case", SCHEDULES, ids=lambda case: f"{case['height']}-{case['num_frames']}-{case['dtype']}")
def test_the_reference_s_timesteps(case):
    size = (case["height"], case["width"], case["num_frames"])
    found = timesteps(case["steps"], *size, dtype=case["dtype"], discrete=case["discrete"])
    assert torch.allclose(found.double(), torch.tensor(case["out"], dtype=torch.float64), rtol=1e-6, atol=0)


def test_no_size_makes_a_first_timestep_beyond_1000_or_overflows():
    for resolution, table in sizes.ASPECT_TABLES.items():
        for ratio in table:
            for frames in (1, 2, 16, 40, 51, 816):
                found = timesteps(30, *image_size(resolution, ratio), frames)
                assert found[0] <= 1000 and found.isfinite().all() and (found.diff() < 0).all()
    # what is clamped: this still would start at 1000.00006, where the reference does nothing in its first step
    ratio = torch.tensor(117 * 312 / 512**2).sqrt()
    assert float(ratio / (1 + (ratio - 1)) * 1000) > 1000


def test_frames_that_are_given_stay_and_others_do_not(model):
    case = "i2v_first_frame"
    z, mask = conditioned(case)
    latent = sample(model, case)
    kept = mask[0] == 0
    assert kept.any() and torch.equal(latent[:, :, kept], z[:, :, kept])
    assert not torch.isclose(latent[:, :, ~kept], z[:, :, ~kept]).any(dim=1).all()


def test_all_frames_generated_is_no_mask(model):
    free = sample(model, "t2v_onesmask", frame_mask=None, step_noise=None)
    assert (sample(model, "t2v_onesmask") - free).abs().max() <= 1e-4


def test_branches_one_by_one_are_branches_in_a_batch(model):
    given, batches = vectors("t2v_nomask"), []
    size = {name: torch.tensor([value]) for name, value in {"fps": 24.0, "height": 32.0, "width": 48.0}.items()}
    text = (given["in.y"][:, None], given["in.y_mask"], model.y_embedder.y_embedding, size)
    hook = model.register_forward_pre_hook(lambda _, args, kwargs: batches.append(len(kwargs["x"])), with_kwargs=True)
    with torch.no_grad():
        joint, separate = (
            sampling.Guidance(model, *text, scale=7.0, joint=joint)(given["in.z_noise"], torch.tensor(500.0))
            for joint in (True, False)
        )
    hook.remove()
    assert batches == [4, 2, 2]
    assert (separate - joint).abs().max() <= 1e-4


def test_a_scale_of_one_runs_one_branch(model):
    sizes = []
    hook = model.register_forward_pre_hook(lambda _, args, kwargs: sizes.append(len(kwargs["x"])), with_kwargs=True)
    alone = sample(model, "t2v_nomask", cfg_scale=1.0)
    near = sample(model, "t2v_nomask", cfg_scale=1.0 + 1e-6)
    hook.remove()
    assert sizes == [2] * 4 + [4] * 4
    assert (alone - near).abs().max() <= 1e-3


def test_the_scheduler_as_diffusers_uses_one(tmp_path):
    scheduler = RFlowScheduler(use_discrete_timesteps=True)
    scheduler.save_pretrained(tmp_path)
    assert RFlowScheduler.from_pretrained(tmp_path).config.use_discrete_timesteps
    scheduler.set_timesteps(3)
    assert scheduler.timesteps.tolist() == [1000, 667, 333] and scheduler.init_noise_sigma == 1
    scheduler.set_timesteps(timesteps=[900, 100.5])
    x, v = torch.zeros(1, 4), torch.ones(1, 4)
    x = scheduler.step(v, scheduler.timesteps[0], x).prev_sample
    assert torch.allclose(x, torch.full((1, 4), 0.7995))
    (x,) = scheduler.step(v, scheduler.timesteps[1], x, return_dict=False)
    assert torch.allclose(x, torch.full((1, 4), 0.9))
    with pytest.raises(ValueError, match="no more steps than it says"):
        scheduler.step(v, 0, x)
    noised = scheduler.add_noise(torch.zeros(2, 4), torch.ones(2, 4), torch.tensor([250.0, 1000.0]))
    assert noised[:, 0].tolist() == [0.25, 1]


@pytest.mark.parametrize("given", [[1001, 5], [5, 7], [7, 7], [5, 0], []])
def test_timesteps_that_do_not_descend_are_refused(given):
    with pytest.raises(ValueError, match="must descend within 1000 to 0"):
        RFlowScheduler().set_timesteps(timesteps=given)
