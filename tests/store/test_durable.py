"""What is finished is there whole, and stays."""

from __future__ import annotations

import os

import pytest

from runner.store.durable import finish, unfinished


def write(target, text):
    folder = unfinished(target)
    (folder / "calls").mkdir()
    (folder / "calls" / "step-000").write_text(text)


def test_a_part_appears_when_it_is_finished(tmp_path):
    target = tmp_path / "prompt-000"
    write(target, "one")
    assert not target.exists()
    finish(target)
    assert [path.name for path in tmp_path.iterdir()] == ["prompt-000"]
    assert (target / "calls" / "step-000").read_text() == "one"


def test_what_an_earlier_run_left_half_written_is_gone(tmp_path):
    write(tmp_path / "prompt-000", "half")
    assert not list(unfinished(tmp_path / "prompt-000").iterdir())


def test_a_part_that_is_there_stays(tmp_path):
    """A batch of two that was cut off between its parts runs again as a whole."""
    target = tmp_path / "prompt-000"
    for text in ("one", "two"):
        write(target, text)
        finish(target)
    assert (target / "calls" / "step-000").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["prompt-000"]


def test_everything_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    target, video, synced = tmp_path / "prompt-000", tmp_path / "prompt-000.mp4", []
    write(target, "one")
    video.write_text("video")
    inodes = {path.stat().st_ino for path in [video, *tmp_path.rglob("*.part"), *tmp_path.rglob("step-000")]}
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_ino))
        patched.setattr(os, "rename", lambda *_: pytest.fail() if not inodes <= set(synced) else None)
        finish(target, beside=[video])
    assert inodes <= set(synced)
