"""What a plan says of weights that are not the guide's."""

from __future__ import annotations

import hashlib
import shutil

import pytest

from runner.desk.plan import notes
from runner.store.fingerprints import Fingerprints

PIN, OTHER = "9a8583918505ee93bd9fae8dd5ce32e1f9334c71", "0" * 40


@pytest.fixture
def said(opensora12, tiny_opensora12, tmp_path):
    """`said(commit, sha256)`: the notes for a checkpoint that was downloaded into its folder at this commit."""

    def read(commit, sha256=None, *arguments):
        folder = tmp_path / "released"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tiny_opensora12.parent, folder)
        weights = folder / tiny_opensora12.name / "model.safetensors"
        record = weights.parent / notes.RECORDS / "model.safetensors.metadata"
        if commit:
            record.parent.mkdir(parents=True)
            record.write_text(f"{commit}\n{sha256 or hashlib.sha256(weights.read_bytes()).hexdigest()}\n1718000000.0\n")
        config = opensora12(f"model.checkpoint={weights.parent}", *arguments).config
        return list(notes.notes(config, Fingerprints(tmp_path / "known.json")))

    return read


def test_nothing_of_the_guide_s_commit_or_of_none_that_is_known(said):
    assert said(PIN) == said(None) == []


def test_another_commit(said):
    (note,) = said(OTHER)
    assert note.startswith("model.checkpoint: ") and f"is at commit {OTHER}" in note and note.endswith(PIN)


def test_a_file_that_was_altered(said):
    (note,) = said(PIN, "1" * 64)
    assert note.endswith("model.safetensors is not what was downloaded, by its sha256")


def test_the_hub_s_own_cache_has_the_commit_in_its_path(opensora12, tiny_opensora12, tmp_path):
    place = tmp_path / "models--x" / "snapshots" / OTHER
    shutil.copytree(tiny_opensora12.parent / "OpenSora-VAE-v1.2", place)
    config = opensora12(f"model.vae3d={place}").config
    (note,) = notes.notes(config, Fingerprints(tmp_path / "known.json"))
    assert note.startswith("model.vae3d: ") and OTHER in note


def test_models_without_such_rules_have_no_notes(config, tmp_path):
    assert list(notes.notes(config, Fingerprints(tmp_path / "known.json"))) == []
