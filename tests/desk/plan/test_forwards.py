"""What the plan says of the transformer's forwards is what every recipe then makes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel
from model.diffusers.tiny import save

from runner import worker
from runner.__main__ import door
from runner.config.recipes import folder
from runner.desk.plan import forwards
from runner.desk.run import launch
from runner.model.opensora12 import OpenSora12Transformer
from runner.model.osp12.transformer import OSP12Transformer

RECIPES = sorted(path.stem for path in folder("recipes").glob("*.yaml"))
TINY = [
    *("model.height=32", "sampler.num_sampling_steps=3", "timing.repeats=1", "recording.steps=6"),
    *("prompts.text=[a red boat, a blue house]", "prompts.calibration=[a red boat, a green tree]", "sample.save=false"),
]
FILM = ["model.num_frames=9", "model.width=48"]
OF_MODEL = {"osp12": FILM, "opensora12": FILM, "sd3": ["model.width=32", "model.max_sequence_length=16"]}

TEXTS = 50_000  # bytes of descriptions and of the contact sheet, which are not counted


@contextmanager
def counted(monkeypatch) -> Iterator[Counter[str]]:
    """Forwards of any transformer, by the stage that a worker in this process is in; in the order of the stages. A
    call that is answered by what was recorded runs no layer, and is none."""
    found: Counter[str] = Counter()
    stage, entered = "", False

    def enter(run, state, **facts) -> None:
        nonlocal stage
        stage = facts.get("stage") or stage
        found[stage] += 0

    def count(module, args) -> None:
        nonlocal entered
        transformer = isinstance(module, OSP12Transformer | OpenSora12Transformer | SD3Transformer2DModel)
        found[stage] += entered and not transformer
        entered = transformer

    def leave(module, args, output) -> None:
        nonlocal entered
        entered = False

    monkeypatch.setattr(worker, "write_status", enter)
    everywhere = torch.nn.modules.module
    hooks = everywhere.register_module_forward_pre_hook(count), everywhere.register_module_forward_hook(leave)
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@pytest.fixture
def here(monkeypatch):
    """The worker in this process, and no page."""
    from runner.desk import report

    monkeypatch.setattr(launch, "launch", lambda run, *others: worker.main([Path(run)]))
    monkeypatch.setattr(report, "write", lambda run: run / "report.html")


def only_run() -> tuple[Path, dict[str, dict]]:
    """Its folder, and the rows of its plan by stage."""
    (file,) = Path("outputs").glob("*/*/plan.json")
    return file.parent, {row["stage"]: row for row in json.loads(file.read_text())["stages"]}


@pytest.mark.parametrize(
    ("recipe", "arguments"),
    [
        *((recipe, []) for recipe in RECIPES),
        ("osp12_w8a8", ["sampler.guidance_batch=separate", "sampler.num_sampling_steps=9", "timing.repeats=0"]),
        ("osp12_w8a8", ["sampler.sample_method=HeunDiscrete", "model.batch_size=2"]),
        ("opensora12_w8a8", ["model.loop=2", "model.num_frames=34", "sampler.guidance_batch=separate"]),
    ],
)
def test_planned_forwards_are_the_counted_ones(
    here, monkeypatch, tiny_checkpoint, tiny_opensora12, reference_image, tmp_path, recipe, arguments
):
    model = recipe.partition("_")[0]
    checkpoint = {"osp12": tiny_checkpoint, "opensora12": tiny_opensora12, "sd3": tmp_path / "sd3"}[model]
    if model == "sd3":
        save("sd3", tmp_path)
    if recipe.endswith("i2v"):
        arguments = [*arguments, f"prompts.references={reference_image}"]
    if recipe.endswith("extend"):
        arguments = [*arguments, "model.num_frames=34"]
    assert_as_planned(
        monkeypatch, f"+recipe={recipe}", f"model.checkpoint={checkpoint}", *TINY, *OF_MODEL[model], *arguments
    )


def assert_as_planned(monkeypatch, *arguments: str) -> None:
    """A run makes the forwards that its plan says, or no more than these, and writes what it says."""
    with counted(monkeypatch) as found:
        assert door(arguments) == 0
    run, rows = only_run()
    counts = {name: row["forwards"] for name, row in rows.items() if row["forwards"] and row["action"] == "run"}
    bounds = {name for name, row in rows.items() if row["at_most"]}
    assert bounds <= {"search-schedule", "search-cache"} and counts.keys() == (+found).keys()
    assert all(found[name] <= counts[name] if name in bounds else found[name] == counts[name] for name in counts)
    assert [name for name in found if name] == [name for name, row in rows.items() if row["action"] == "run"]
    for name, row in rows.items():
        if row["action"] == "run":
            taken = sum(file.stat().st_size for file in (run / name).rglob("*") if file.is_file())
            assert 0.9 * taken - TEXTS <= row["disk"] <= 1.15 * taken, name


def test_calls_of_ones_own_are_counted_and_bound_what_is_measured(here, monkeypatch, tiny_checkpoint, tmp_path):
    at = ["+recipe=osp12_w8a8", f"model.checkpoint={tiny_checkpoint}", *TINY, *OF_MODEL["osp12"]]
    assert door([*at, "dump.format=pth", "until=dump", f"output={tmp_path / 'first'}"]) == 0
    (file,) = (tmp_path / "first").glob("*/*/dump/calib_data.pth")
    assert forwards.records(file) == 6
    with counted(monkeypatch) as found:
        assert door([*at, f"dump.from={file}"]) == 0
    _, rows = only_run()
    assert rows["dump"]["forwards"] == found["dump"] == 12 and rows["quantize"]["at_most"]
    assert 0 < found["quantize"] <= rows["quantize"]["forwards"] == 6


@pytest.mark.parametrize("content", [b"", b"PK", b"no archive"])
def test_a_file_of_another_kind_counts_nothing(content):
    Path("a.pth").write_bytes(content)
    assert forwards.records(Path("a.pth")) == 0
    assert forwards.records(Path("nowhere.pth")) == 0


def test_counting_records_executes_nothing():
    """A pickle may name any function; here it is not even looked up."""
    import pickle
    import zipfile

    class Evil:
        def __reduce__(self):
            return (Path("touched").touch, ())

    with zipfile.ZipFile("evil.pth", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps([Evil(), {"args": [Evil()]}, 3], protocol=2))
    assert forwards.records(Path("evil.pth")) == 3
    assert not Path("touched").exists()
