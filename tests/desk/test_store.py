"""Artifacts appear whole, are found whole, and are made again when they are not."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from runner.desk import fingerprints, machine
from runner.desk.store import Store

KEY = "0123456789abcdef"


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / ".store")


def make(store: Store, text: str = "ranges") -> None:
    draft = store.draft("calibrate", KEY)
    (draft / "prompt-000").mkdir(exist_ok=True)
    (draft / "prompt-000" / "latents").write_text("latents")
    (draft / "ranges.json").write_text(text)
    store.commit(draft, "calibrate", KEY)


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_committed_artifact_is_found(store):
    assert store.inspect("calibrate", KEY) == (None, "not stored yet")
    make(store)
    entry = store.find("calibrate", KEY)
    assert entry is not None and set(entry.files) == {"ranges.json", "prompt-000/latents"}
    assert (entry.path / "ranges.json").read_text() == "ranges"
    assert entry.path == store.root / f"calibrate-{KEY}"
    assert store.find("calibrate", "f" * 16) is None and store.find("dump", KEY) is None
    assert not list((store.root / "drafts").iterdir())


def test_looking_writes_nothing(store):
    store.find("calibrate", KEY)
    assert not store.root.exists()


def test_manifest_is_a_function_of_the_files(tmp_path):
    stores = Store(tmp_path / "one"), Store(tmp_path / "two")
    for store in stores:
        make(store)
    one, two = ((store.root / f"calibrate-{KEY}" / "manifest.json").read_bytes() for store in stores)
    assert one == two


def test_a_draft_keeps_finished_parts_and_its_commit_drops_the_others(store):
    draft = store.draft("dump", KEY)
    (draft / "prompt-000").mkdir()
    (draft / "prompt-000" / "frames").write_text("frames")
    (draft / "prompt-001.part").mkdir()
    (draft / "prompt-001.part" / "frames.part").write_text("half")
    again = store.draft("dump", KEY)
    assert names(again) == {"prompt-000/frames", "prompt-001.part/frames.part"}
    assert store.commit(again, "dump", KEY).files == ("prompt-000/frames",)


@pytest.mark.parametrize("crash", ["fsync", "rename"])
def test_a_commit_that_is_cut_off_leaves_a_draft(store, monkeypatch, crash):
    def fail(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space"):
        patched.setattr(os, crash, fail)
        make(store)
    assert store.find("calibrate", KEY) is None
    make(store)
    assert store.find("calibrate", KEY, thorough=True) is not None


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda entry: (entry / "ranges.json").write_text("rangez"), "stored ranges.json was altered"),
        (lambda entry: (entry / "ranges.json").write_text("ran"), "stored ranges.json has 3 bytes instead of 6"),
        (lambda entry: (entry / "prompt-000" / "latents").unlink(), "stored prompt-000/latents is gone"),
        (lambda entry: (entry / "manifest.json").write_text('{"files": {'), "its stored manifest is damaged"),
        (lambda entry: (entry / "manifest.json").unlink(), "its stored files lost their manifest"),
    ],
)
def test_damage_is_found_and_made_again(store, damage, says):
    make(store)
    damage(store.root / f"calibrate-{KEY}")
    assert store.inspect("calibrate", KEY) == (None, says)
    make(store)
    entry = store.find("calibrate", KEY)
    assert entry is not None and (entry.path / "ranges.json").read_text() == "ranges"
    assert len(list((store.root / "damaged").iterdir())) == 1


def test_thorough_look_reads_all(store):
    """What hides behind the same size, time and inode, like a decayed disk, is found by reading."""
    make(store)
    file = store.root / f"calibrate-{KEY}" / "ranges.json"
    times = file.stat()
    file.write_text("rangez")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert store.find("calibrate", KEY) is not None
    assert store.find("calibrate", KEY, thorough=True) is None


def test_reuse_reads_no_file(store, monkeypatch):
    make(store)
    monkeypatch.setattr(fingerprints, "sha256", None)
    assert store.find("calibrate", KEY) is not None


def test_who_comes_second_takes_what_is_there(store):
    make(store, "first")
    make(store, "second")
    entry = store.find("calibrate", KEY)
    assert entry is not None and (entry.path / "ranges.json").read_text() == "first"
    assert not list((store.root / "drafts").iterdir())


def test_run_folder_is_whole_and_takes_no_space(store, tmp_path):
    make(store)
    entry = store.find("calibrate", KEY)
    folder = store.link(entry, tmp_path / "run")
    assert folder == tmp_path / "run" / "calibrate"
    assert names(tmp_path / "run") == {"calibrate/ranges.json", "calibrate/prompt-000/latents"}
    assert (folder / "ranges.json").stat().st_ino == (entry.path / "ranges.json").stat().st_ino
    assert store.link(entry, tmp_path / "run") == folder  # a second time changes nothing
    assert names(tmp_path / "run") == {"calibrate/ranges.json", "calibrate/prompt-000/latents"}


def test_other_file_system_gets_copies(store, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    make(store)
    entry = store.find("calibrate", KEY)
    (entry.path / "ranges.json").chmod(0o640)
    monkeypatch.setattr(os, "link", refuse)
    copy = store.link(entry, tmp_path / "run") / "ranges.json"
    assert copy.read_text() == "ranges" and copy.stat().st_mode & 0o777 == 0o640
    assert copy.stat().st_ino != (entry.path / "ranges.json").stat().st_ino


def test_measurements_are_kept_by_machine_outside_the_artifact(store, tmp_path, monkeypatch):
    make(store)
    before = names(store.root / f"calibrate-{KEY}")
    store.write_measurements("calibrate", KEY, {"seconds": 1.5})
    copy = store.link_measurements("calibrate", KEY, tmp_path / "run")
    assert copy == tmp_path / "run" / "measurements" / "calibrate.json"
    assert json.loads(copy.read_text()) == {"seconds": 1.5}
    assert names(store.root / f"calibrate-{KEY}") == before
    assert (store.root / "measurements" / machine.identity() / f"calibrate-{KEY}.json").is_file()
    monkeypatch.setattr(machine, "identity", lambda: "another")
    assert store.link_measurements("calibrate", KEY, tmp_path / "run") is None
