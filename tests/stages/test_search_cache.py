"""The search of a cache as a stage of a run: what it leaves, what it spends, and that sample applies it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.command import run, run_folder

from runner.cache.policy import Rectangle, read

STEPS = 10


@pytest.fixture(scope="module")
def searched(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("outputs")
    done = run(
        output, "cache=dit_cache", "cache.ratio=1.1", f"cache.save_path={output}/mine/found.json", "model.dtype=fp32",
        f"model.checkpoint={tiny_checkpoint}", f"sampler.num_sampling_steps={STEPS}", "prompts.text=a red boat",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return run_folder(output, "run")


def test_the_search_says_what_it_did(searched: Path) -> None:
    facts = json.loads((searched / "search-cache" / "search.json").read_text())
    plan = {stage["stage"]: stage for stage in json.loads((searched / "plan.json").read_text())["stages"]}
    assert 0 < facts["forwards"] <= 6 * STEPS == plan["search-cache"]["forwards"]
    chosen = facts["verified"][facts["answer"]]
    speeds = json.loads((searched / "measurements" / "search-cache.json").read_text())["verified"]
    assert len(speeds) == len(facts["verified"]) and f"{speeds[facts['answer']]['speedup']:.3f}" in facts["statement"]
    assert chosen["errors"][0] > 0 and len(facts["gains"]) == STEPS and len(facts["movement"]) == STEPS - 1


def test_the_configuration_is_msmodelslims_and_delivered(searched: Path) -> None:
    found = read(searched / "search-cache" / "cache_config.json")
    assert isinstance(found, Rectangle)
    assert read(searched.parents[1] / "mine" / "found.json") == found


def test_sample_applies_it(searched: Path) -> None:
    found = read(searched / "search-cache" / "cache_config.json")
    metrics = json.loads((searched / "sample" / "metrics.json").read_text())
    assert metrics["cache"]["config"] == found.to_json()
    assert [r and tuple(r) for r in metrics["cache"]["ranges"]] == list(found.policy(STEPS, 2).ranges)
    assert metrics["summary"]["latent_error"]["median"] > 0
    speed = json.loads((searched / "measurements" / "sample.json").read_text())["cache"]
    assert speed["low"] <= speed["speedup"] <= speed["high"]


def test_the_same_configuration_from_a_file_gives_the_same_bytes(searched: Path, tiny_checkpoint: Path) -> None:
    file = searched.parents[1] / "mine" / "found.json"
    common = ("model.dtype=fp32", f"model.checkpoint={tiny_checkpoint}", f"sampler.num_sampling_steps={STEPS}",
              "prompts.text=a red boat", "sample.compare=false")  # fmt: skip
    latents = {}
    for name, arguments in {"file": ("cache=dit_cache", f"cache.config={file}"), "off": ()}.items():
        assert run(searched.parents[1], *arguments, *common, f"name={name}").returncode == 0
        part = run_folder(searched.parents[1], name) / "sample" / "prompt-000"
        latents[name] = load_file(part / "latents.safetensors")["latents"]
    cached = load_file(searched / "sample" / "prompt-000" / "latents.safetensors")["latents"]
    assert torch.equal(latents["file"], cached)
    assert any(
        torch.equal(latents["off"], load_file(file)["latents"])
        for file in (searched / "dump").glob("prompt-*/latents.safetensors")
    )


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [
    ("cache=adaptive", "cache.ratio=1.2", "+recipe=osp12_w8a8"),
    ("cache=dit_cache", "cache.ratio=1.3", "cache.search=exhaustive"),
    ("cache=dit_cache", "cache.ratio=auto", "cache.quality=0.5"),
])  # fmt: skip
def test_the_other_searches(tiny_checkpoint: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = run(
        tmp_path, *arguments, f"model.checkpoint={tiny_checkpoint}", "sampler.num_sampling_steps=20", "name=other",
        "prompts.text=a red boat", "timing.repeats=1", "model.dtype=fp32",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder = run_folder(tmp_path, "other")
    facts = json.loads((folder / "search-cache" / "search.json").read_text())
    assert facts["forwards"] == sum(each["forwards"] for each in facts["verified"]) or facts["search"] == "recording"
    if facts["answer"] is not None:
        config = json.loads((folder / "search-cache" / "cache_config.json").read_text())
        assert ("cache_segments" in config) == (facts["policy"] == "adaptive")
        assert json.loads((folder / "sample" / "metrics.json").read_text())["cache"]["config"] == config
