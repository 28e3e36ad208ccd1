"""hardware=npu and hardware=gcu over stand-ins of what their vendors publish; refused plainly without them."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import zipfile
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hardware import vendors
from rich.console import Console

from runner import worker
from runner.hardware import open_device

DEVICES = ("npu", "gcu")


@pytest.fixture(autouse=True)
def gone_afterwards(monkeypatch):
    vendors.calls.clear()
    for device in DEVICES:
        monkeypatch.delitem(sys.modules, f"torch_{device}", raising=False)
    yield
    for device in DEVICES:
        sys.modules.pop(f"torch_{device}", None)


@pytest.mark.parametrize("device", DEVICES)
def test_refused_with_the_reason_where_absent(device, monkeypatch):
    monkeypatch.setitem(sys.modules, f"torch_{device}", None)  # as if it were not installed
    with pytest.raises(RuntimeError, match=rf"^hardware={device}: torch_{device} cannot be imported"):
        open_device(device)


@pytest.mark.parametrize("device", DEVICES)
def test_refused_without_a_card(device, monkeypatch):
    vendors.install(device, count=0, put=monkeypatch.setattr)
    with pytest.raises(RuntimeError, match=f"torch_{device} sees no {device.upper()}"):
        open_device(device)


@pytest.mark.parametrize("device", DEVICES)
def test_only_what_is_published_is_called(device, monkeypatch):
    vendors.install(device, put=monkeypatch.setattr)
    hardware = open_device(device)
    hardware.choose(0)
    hardware.synchronize()
    hardware.reset_peak_memory()
    assert hardware.peak_memory() == {"npu": 12345, "gcu": 0}[device]
    before = hardware.clock()
    assert before < hardware.clock()
    described = hardware.describe()
    assert described["device"] == {"npu": "Ascend910B", "gcu": "Enflame GCU"}[device]
    assert vendors.calls.count("synchronize") == 3 and "empty_cache" in vendors.calls
    with pytest.raises(AttributeError):
        getattr(torch, device).current_stream()  # the stand-in has no more than was published


def test_processes_share_cards_where_they_can_be_chosen(monkeypatch):
    vendors.install("npu", count=2, put=monkeypatch.setattr)
    open_device("npu").choose(3)
    vendors.install("gcu", put=monkeypatch.setattr)
    with pytest.raises(RuntimeError, match="runs in one process"):
        open_device("gcu").choose(1)


GENERATE = """
import sys, torch
from hardware import vendors
device, folder = sys.argv[1:]
torch.utils.rename_privateuse1_backend(device)  # so that torch knows the name, as with the vendor's package
vendors.install(device)
from hardware.card import Card
from runner.bench.context import Bench
from runner.generation.generate import generate
from runner.hardware import open_device
model = {"name": "opensora12", "checkpoint": folder, "dtype": "fp16", "num_frames": 5, "height": 240, "width": 426,
         "max_sequence_length": 12, "fps": 8}
sampler = {"sample_method": "RFLOW", "num_sampling_steps": 2, "guidance_scale": 4.0, "guidance_batch": "joint",
           "schedule": None, "noise": "draws"}
hardware = {"device": device, "offload": False, "compute": "fp16", "layerwise_casting": False}
config = {"model": model, "sampler": sampler, "hardware": hardware,
          "parallel": {"cfg": False}, "recording": {"steps": 2}}
with Card(device):
    made = generate(Bench().pipeline(config), config, ["a red boat"], [1], open_device(device))
assert made.frames.shape == (1, 5, 240, 424, 3) and made.frames.float().std() > 1
print(*vendors.calls)
"""


@pytest.mark.parametrize("device", DEVICES)
def test_a_generation_asks_for_nothing_else(device, tiny_opensora12):
    tests = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", GENERATE, device, str(tiny_opensora12)], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) <= {"is_available", "synchronize"}
    assert done.stdout.split().count("synchronize") >= 4


@pytest.mark.parametrize(
    ("memory", "offload", "said"),
    [
        (
            70 << 30,
            False,
            "sample     takes about 75.2 GB, and the npu has 68.7 GB; hardware.offload=true takes less\n",
        ),
        (70 << 30, True, "sample     takes about 75.2 GB, and the npu has 68.7 GB\n"),
        (60 << 30, False, ""),
        (None, False, ""),
    ],
)
def test_more_memory_than_a_card_has_is_said(memory, offload, said, monkeypatch):
    vendors.install("npu", put=monkeypatch.setattr)
    config, out = {"hardware": {"device": "npu", "offload": offload}}, StringIO()
    stage = SimpleNamespace(stage="sample", config=config, console=Console(file=out), hardware=open_device("npu"))
    worker.warn(stage, memory)
    assert out.getvalue() == said


@pytest.mark.slow
def test_the_npu_s_names_and_parameters_are_the_wheel_s():
    wheel = os.environ.get("TORCH_NPU_WHEEL") or pytest.skip("TORCH_NPU_WHEEL names no torch_npu wheel")
    with zipfile.ZipFile(wheel) as archive:
        texts = [
            archive.read(name).decode() for name in archive.namelist() if re.search(r"torch_npu/npu/\w+.py$", name)
        ]
    published: dict[str, set[str]] = {}
    for text in texts:
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef):
                published.setdefault(node.name, set()).update(argument.arg for argument in node.args.args)
    source = ast.parse(Path(vendors.__file__).read_text())
    (made,) = (node for node in source.body if isinstance(node, ast.FunctionDef) and node.name == "npu")
    ours = {node.name: {a.arg for a in node.args.args} for node in made.body if isinstance(node, ast.FunctionDef)}
    assert ours and all(
        published.get(name, set()) >= parameters and name in published for name, parameters in ours.items()
    )
