"""What no run uses is shown, then deleted; what is used, or being made, stays."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from runner.__main__ import door
from runner.desk.commands.prune import unused
from runner.store.artifacts import Store
from runner.store.locks import lock

KEYS = [character * 16 for character in "abcd"]


@pytest.fixture
def store() -> Store:
    return Store(Path("outputs/.store"))


def made(store: Store, key: str, run: str | None = None, megabytes: float = 1) -> Path:
    """An artifact, linked into the run folder outputs/NAME if that is named."""
    draft = store.draft("dump", key)
    (draft / "prompt-000").mkdir(exist_ok=True)
    (draft / "prompt-000" / "frames").write_bytes(key.encode() * int(megabytes * 1e6 / 16))
    store.write_lineage("dump", key, {"key": key})
    store.write_measurements("dump", key, {"seconds": 1.0})
    entry = store.commit(draft, "dump", key)
    if run:
        folder = Path("outputs/recipe") / run
        store.link(entry, folder)
        (folder / "run.json").write_text("{}")
        rows = [{"stage": "dump", "does": "dump", "key": key}, {"stage": "sample", "does": "sample", "key": ""}]
        (folder / "plan.json").write_text(json.dumps({"stages": rows}))
    return entry.path


def test_what_is_used_stays(store, capsys):
    made(store, KEYS[0], "run-1")
    assert door(["prune"]) == 0
    assert "everything is used" in capsys.readouterr().out


def test_first_it_is_shown_then_deleted(store, capsys):
    kept, gone = made(store, KEYS[0], "run-1"), made(store, KEYS[1], "run-2", megabytes=2)
    shutil.rmtree("outputs/recipe/run-2")
    draft = store.draft("sample", KEYS[2])
    (draft / "prompt-000").mkdir()
    (draft / "prompt-000" / "frames").write_bytes(bytes(500))

    assert door(["prune", "outputs"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[:4] for line in out[:2]] == [
        ["artifact", gone.name, "2.00", "MB"],
        ["draft", draft.name, "500", "B"],
    ]
    assert out[2] == "2.00 MB in all; with --yes this is deleted"
    assert gone.is_dir() and draft.is_dir()

    assert door(["prune", "outputs", "--yes"]) == 0
    assert "freed 2.00 MB" in capsys.readouterr().out
    assert kept.is_dir() and not gone.exists() and not draft.exists()
    left = {path.name for path in store.root.rglob("*") if gone.name in path.name or draft.name in path.name}
    assert left == {f"{gone.name}.json"}, "its measurements"
    assert (store.root / "lineage" / f"{kept.name}.json").exists()
    assert not unused(Path("outputs")) and door(["prune", "--yes"]) == 0


def test_a_run_folder_that_moved_away_still_counts(store, tmp_path):
    made(store, KEYS[0], "run-1")
    Path("outputs/recipe/run-1").rename(tmp_path / "elsewhere")
    assert not unused(Path("outputs"))


def test_copies_count_while_their_run_folder_stands(store, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    path = made(store, KEYS[0], "run-1")
    assert not unused(Path("outputs"))
    shutil.rmtree("outputs/recipe/run-1")
    assert [item.path for item in unused(Path("outputs"))] == [path]


def test_what_somebody_is_at_work_on_stays(store, capsys):
    path, draft = made(store, KEYS[0]), store.draft("sample", KEYS[1])
    with lock(store.root / "locks" / path.name, "a run", shared=True), lock(store.root / "locks" / draft.name, "a run"):
        assert [item.path for item in unused(Path("outputs"))] == [path]
        assert door(["prune", "--yes"]) == 0
        assert "kept: in use by now" in capsys.readouterr().out and path.is_dir()
    assert door(["prune", "--yes"]) == 0
    assert not path.exists() and not draft.exists()


def test_an_artifact_that_is_linked_between_the_look_and_the_deletion_stays(store, monkeypatch, capsys):
    path = made(store, KEYS[0])
    (item,) = unused(Path("outputs"))
    os.link(path / "prompt-000" / "frames", "frames")
    monkeypatch.setattr("runner.desk.commands.prune.unused", lambda output: [item])
    assert door(["prune", "--yes"]) == 0
    assert path.is_dir() and "freed 0 B; 1 kept" in capsys.readouterr().out


def test_a_redo_that_was_cut_off_goes_and_what_is_stored_stays(store):
    path, draft = made(store, KEYS[0], "run-1"), store.draft("dump", KEYS[0], redo=True)
    (draft / "prompt-000").mkdir()
    (draft / "prompt-000" / "frames").write_bytes(bytes(500))
    assert [(item.path, item.kind) for item in unused(Path("outputs"))] == [(draft, "draft")]
    assert door(["prune", "--yes"]) == 0
    assert not draft.exists() and path.is_dir()
    assert (store.lineages / f"{path.name}.json").is_file() and store.find("dump", KEYS[0], thorough=True)


def test_what_a_redo_replaced_stays_in_the_run_folders_that_have_it(store):
    path = made(store, KEYS[0], "run-1")
    draft = store.draft("dump", KEYS[0], redo=True)
    (draft / "prompt-000").mkdir()
    (draft / "prompt-000" / "frames").write_text("redone")
    store.link(store.commit(draft, "dump", KEYS[0]), Path("outputs/recipe/run-2"))
    assert not unused(Path("outputs"))
    shutil.rmtree("outputs/recipe/run-2")
    Path("outputs/recipe/run-1").rename("elsewhere")  # it needs the store no more
    assert [item.path for item in unused(Path("outputs"))] == [path]
    assert Path("elsewhere/dump/prompt-000/frames").read_bytes() == KEYS[0].encode() * (10**6 // 16)


def test_damaged_ones_and_leftovers_go(store):
    path = made(store, KEYS[0], "run-1")
    (path / "manifest.json").unlink()
    made(store, KEYS[0], "run-1")
    (store.root / "discarded" / "dump-x").mkdir(parents=True)
    assert {item.kind for item in unused(Path("outputs"))} == {"damaged", "leftover"}
    assert door(["prune", "--yes"]) == 0
    assert not unused(Path("outputs")) and path.is_dir()


def test_where_there_is_no_store(capsys):
    assert door(["prune", "nothing/here"]) == 2
    assert "expected an output folder with a .store in it" in capsys.readouterr().err
