"""The two branches of guidance on two ranks. The second rank is a thread here, and its line a pair of queues."""

from __future__ import annotations

import pickle
import queue
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from runner.generation.steps import Steps
from runner.hardware import mesh
from runner.parallel import cfg
from runner.recording.statistics import LinearStatistics


class Toy(nn.Module):
    """forward(hidden_states [B, L, 6], timestep [B]) -> ([B, L, 6],), named as a pipeline does."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.out = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, hidden_states, timestep, encoder_hidden_states, return_dict=True):
        if timestep.max() < 0:
            raise ValueError("time runs forward")
        return (self.out(self.q(hidden_states) * timestep[0] / 1000 + encoder_hidden_states),)


def make(seed):
    """What both ranks build; the weights are those of the seed."""
    if seed < 0:
        raise FileNotFoundError("no such weights")
    own = torch.Generator().manual_seed(seed)  # the global one is shared by the threads
    module = Toy().requires_grad_(False)
    for parameter in module.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=own))
    made.append(module)
    return module


made: list[Toy] = []  # by whichever rank


class Scheduler:
    def __init__(self):
        self.timesteps = torch.tensor([900.0, 500.0, 100.0])
        self.config = SimpleNamespace(num_train_timesteps=1000)

    def step(self, model_output, timestep, sample):
        return (sample - 0.1 * model_output,)


class Pipeline(SimpleNamespace):
    def __call__(self, failing_at=None):
        """Three guided steps in two forwards each; the latents after them."""
        latents = torch.linspace(-1, 1, 24).view(1, 4, 6)
        texts = torch.linspace(0, 2, 12).view(2, 1, 1, 6)
        with torch.inference_mode(), cfg.split(self.transformer):
            for t in self.scheduler.timesteps:
                predictions = []
                for branch, text in enumerate(texts):
                    sign = -1 if failing_at == (float(t), branch) else 1
                    predictions.append(
                        self.transformer(
                            hidden_states=latents,
                            timestep=sign * t[None],
                            encoder_hidden_states=text,
                            return_dict=False,
                        )[0]
                    )
                unconditional, conditional = torch.cat(predictions).chunk(2)
                guided = unconditional + 4 * (conditional - unconditional)
                latents = self.scheduler.step(guided, t, latents)[0]
        return latents


def pipeline(transformer):
    return Pipeline(transformer=transformer, scheduler=Scheduler())


@pytest.fixture(autouse=True)
def forget():
    made.clear()
    cfg._held.number = None


@pytest.fixture
def ranks(monkeypatch):
    """Rank 1 serves in a thread while a test is rank 0."""
    lines = (queue.Queue(), queue.Queue())  # to rank 0, to rank 1

    def receive(source):
        return pickle.loads(lines[1 - source].get(timeout=200))

    monkeypatch.setattr(mesh, "size", lambda: 2)
    monkeypatch.setattr(mesh, "send", lambda message, to: lines[to].put(pickle.dumps(message)))
    monkeypatch.setattr(mesh, "receive", receive)
    server = threading.Thread(target=cfg.serve, daemon=True)
    server.start()
    yield
    cfg.dismiss()
    server.join(200)
    assert not server.is_alive() and lines[0].empty(), "an answer is left that nobody took"


def test_two_ranks_compute_what_one_does(ranks):
    expected = pipeline(make(3))()
    ours = cfg.twinned(make, 3)
    first = pipeline(ours)()  # in the first pair the leader waits, to learn the form of an answer
    for _ in range(2):
        assert torch.equal(pipeline(ours)(), first)
    assert torch.equal(first, expected)


def test_each_rank_computes_one_branch(ranks):
    ours = cfg.twinned(make, 3)
    seen = []
    ours.register_forward_pre_hook(lambda *_: seen.append("call"))
    leader = []
    forward = Toy.forward

    def counted(self, *args, **kwargs):
        leader.append(self)
        return forward(self, *args, **kwargs)

    Toy.forward = counted
    try:
        pipeline(ours)()
    finally:
        Toy.forward = forward
    by_rank = [sum(module is ours for module in leader), sum(module is not ours for module in leader)]
    assert by_rank == [3, 3]
    assert len(seen) == 6, "hooks of the whole transformer see every call"


def test_another_model_takes_the_place_of_the_twin(ranks):
    ours, other = cfg.twinned(make, 3), cfg.twinned(make, 5)
    assert torch.equal(pipeline(other)(), pipeline(make(5))())
    assert torch.equal(pipeline(ours)(), pipeline(make(3))())  # rank 1 reads it again


def test_hooks_that_want_both_branches_get_them(ranks):
    ours = cfg.twinned(make, 3)
    seen = []
    hook = ours.q.register_forward_hook(lambda module, args, output: seen.append(output))
    assert torch.equal(pipeline(ours)(), pipeline(make(3))())
    assert len(seen) == 6
    hook.remove()
    with cfg.content(Watching(ours.q, seen := []), ours):
        pipeline(ours)()
    assert len(seen) == 3
    ours.q.register_forward_hook(lambda module, args, output: seen.append(output))
    seen.clear()
    pipeline(ours)()
    assert len(seen) == 6, "content is only who says so, while it is there"


def test_who_answers_in_the_place_of_the_transformer_gets_every_call(ranks):
    ours = cfg.twinned(make, 3)
    answered = []

    def forward(**call):
        answered.append(call)
        return Toy.forward(ours, **call)

    ours.forward = forward
    assert torch.equal(pipeline(ours)(), pipeline(make(3))())
    assert len(answered) == 6 and ours.forward is forward


class Watching:
    def __init__(self, module, seen):
        self.module, self.seen = module, seen

    def __enter__(self):
        self.hook = self.module.register_forward_hook(lambda *_: self.seen.append(1))

    def __exit__(self, *_):
        self.hook.remove()


def test_statistics_are_of_both_branches(ranks, tmp_path):
    def record(transformer, folder):
        folder.mkdir()
        whole = pipeline(transformer)
        with Steps(whole) as steps, cfg.mirrored(LinearStatistics, transformer, steps) as statistics:
            whole()
        statistics.save(folder)
        return {file.name: file.read_bytes() for file in folder.iterdir()}

    alone = record(make(3), tmp_path / "alone")
    ours = cfg.twinned(make, 3)
    assert record(ours, tmp_path / "both") == record(ours, tmp_path / "again") == alone


@pytest.mark.parametrize("branch", [0, 1])
@pytest.mark.parametrize("step", [900.0, 500.0])
def test_a_failure_is_told_and_leaves_no_answer_behind(ranks, branch, step):
    """Branch 0 is on the other rank, branch 1 here."""
    ours = cfg.twinned(make, 3)
    expected = pipeline(ours)()
    with pytest.raises(cfg.RankFailed if branch == 0 else ValueError, match="time runs forward") as failed:
        pipeline(ours)(failing_at=(step, branch))
    if branch == 0:
        assert "rank 1" in str(failed.value.__cause__) and "in forward" in str(failed.value.__cause__)
    assert torch.equal(pipeline(ours)(), expected)


def test_what_cannot_be_loaded_there_is_said_at_the_first_call(ranks):
    ours = cfg.twinned(make, 3)
    cfg._twins[ours].arguments = (-1,)
    cfg._held.number = None
    with pytest.raises(cfg.RankFailed, match="FileNotFoundError: no such weights"):
        pipeline(ours)()


def test_one_process_has_no_twin():
    ours = cfg.twinned(make, 3)
    assert len(made) == 1
    assert torch.equal(pipeline(ours)(), pipeline(make(3))())


def osp12(folder):
    from runner.model.osp12 import OSP12Transformer

    return OSP12Transformer.from_pretrained(folder / "dit_a/model_ema")


def osp12_pipeline(folder, transformer):
    from runner.model.osp12 import OSP12VAE, OSP12Pipeline
    from runner.sampler import make_scheduler

    vae = OSP12VAE.from_pretrained(folder / "vae_a/vae")
    scheduler = make_scheduler("EulerAncestralDiscrete")
    text = {"prompt_embeds": torch.ones(1, 8, transformer.config.caption_channels)}
    text["prompt_attention_mask"] = torch.ones(1, 8, dtype=torch.long)
    negative = {f"negative_{name}": tensor / 2 for name, tensor in text.items()}
    return OSP12Pipeline(vae, None, None, transformer, scheduler), text | negative


def opensora12(folder):
    from runner.model.opensora12 import OpenSora12Transformer

    return OpenSora12Transformer.from_pretrained(folder / "stdit3")


def opensora12_pipeline(folder, transformer):
    from runner.model.opensora12 import OpenSora12Pipeline, OpenSora12VAE, RFlowScheduler

    vae = OpenSora12VAE.from_pretrained(folder / "vae3d")
    width = transformer.config.caption_channels
    text = {"prompt_embeds": torch.ones(1, 4, width), "prompt_attention_mask": torch.ones(1, 4, dtype=torch.long)}
    return OpenSora12Pipeline(vae, None, None, transformer, RFlowScheduler()), text


@pytest.mark.parametrize(("load", "around"), [(osp12, osp12_pipeline), (opensora12, opensora12_pipeline)])
def test_our_pipelines_are_split(ranks, caplog, load, around):
    folder = Path(__file__).parents[1] / "data" / load.__name__

    def latents(transformer):
        pipeline, text = around(folder, transformer)
        pipeline.set_progress_bar_config(disable=True)
        size = {"num_frames": 5, "height": 32, "width": 32, "num_inference_steps": 3, "guidance_scale": 4.0}
        generator = torch.Generator().manual_seed(1)
        with torch.inference_mode(), cfg.split(pipeline.transformer):
            return pipeline(**size, **text, generator=generator, guidance_batch="separate", output_type="latent").frames

    alone = latents(load(folder))
    with caplog.at_level("INFO"):
        together = latents(cfg.twinned(load, folder))
    assert torch.equal(together, alone) and alone.isfinite().all()
    assert f"one branch of guidance is computed on rank {cfg.SERVER}" in caplog.text
