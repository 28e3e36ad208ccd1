"""What is recorded about a run, and what is never."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import pytest

from runner.desk.run import provenance
from runner.model.checkpoints import Checkpoint
from runner.store import machine
from runner.store.fingerprints import Fingerprints


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    return subprocess.run(
        ["git", "-C", folder, *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_commit_and_whether_files_differ_from_it(tmp_path):
    assert provenance.commit(tmp_path) == {"commit": None, "dirty": None, "changes": None}
    git(tmp_path, "init")
    (tmp_path / "a").write_text("one")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-m", "a")
    assert provenance.commit(tmp_path) == {
        "commit": git(tmp_path, "rev-parse", "HEAD"),
        "dirty": False,
        "changes": None,
    }
    changes = []
    for text in ("two", "three"):
        (tmp_path / "a").write_text(text)
        found = provenance.commit(tmp_path)
        assert found["dirty"] is True
        changes.append(found["changes"])
    assert None not in changes and changes[0] != changes[1]


def test_no_git_is_no_fault(tmp_path, monkeypatch):
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", "")
    assert provenance.commit(tmp_path) == {"commit": None, "dirty": None, "changes": None}


def test_weights_packages_machine_and_names_alone(config, tmp_path, monkeypatch):
    monkeypatch.setenv("A_TOKEN", "the secret value")
    folder = config["model"]["checkpoint"]
    found = provenance.gather(config, Checkpoint(folder, "label"), Fingerprints(tmp_path / "cache"))
    weights = Path(folder) / "diffusion_pytorch_model.safetensors"
    recorded = found["checkpoint"]["files"]["transformer/diffusion_pytorch_model.safetensors"]
    assert recorded == {"path": str(weights), "sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
    assert {name.partition("/")[0] for name in found["checkpoint"]["files"]} == {"transformer", "vae", "text_encoder"}
    assert found["packages"]["torch"] and found["packages"]["hydra-core"]
    assert found["machine"]["id"] == machine.identity() and found["machine"]["cores"] >= 1
    assert found["prompts"]["text"]["count"] == len(config["prompts"]["text"])
    assert config["prompts"]["text"][0] not in json.dumps(found)
    assert "A_TOKEN" in found["environment"] and "the secret value" not in json.dumps(found)


def test_machines_alike_have_one_name(monkeypatch):
    facts = {
        "processor": "A (R) CPU @ 2 GHz",
        "cores": 2,
        "memory": 8 * 2**30 + 4096,
        "accelerators": [],
        "system": "x",
    }
    names = []
    for other in ({}, {"memory": 8 * 2**30}, {"cores": 4}, {"accelerators": ["a GPU"]}):
        monkeypatch.setattr(machine, "describe", lambda other=other: facts | other)
        names.append(machine.identity())
    assert names[0] == names[1] and len(set(names)) == 3
    assert names[0].startswith("a-r-cpu-2-ghz-")


@pytest.mark.parametrize("fact", ["processor", "cores", "memory"])
def test_this_machine_is_known(fact):
    assert machine.describe()[fact]
