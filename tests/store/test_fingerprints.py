"""Hashes are right, read once, and read again when a file changed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from runner.store import fingerprints
from runner.store.fingerprints import Fingerprints


@pytest.fixture
def reads(monkeypatch):
    """The files that were read to be hashed."""
    read = []

    def counted(path: Path) -> str:
        read.append(path.name)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(fingerprints, "sha256", counted)
    return read


def test_hash_of_more_than_one_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "CHUNK", 1000)
    (tmp_path / "a").write_bytes(os.urandom(2500))
    assert fingerprints.sha256(tmp_path / "a") == hashlib.sha256((tmp_path / "a").read_bytes()).hexdigest()


def test_known_files_are_not_read_again(tmp_path, reads):
    file, cache = tmp_path / "a", tmp_path / "deep" / "cache.json"
    file.write_text("one")
    first = Fingerprints(cache)
    assert not first.knows(file)
    digest = first.sha256(file)
    first.save()
    again = Fingerprints(cache)
    assert again.knows(file) and again.sha256(file) == digest and reads == ["a"]
    again.sha256(file, fresh=True)
    assert reads == ["a", "a"]


@pytest.mark.parametrize("change", ["content", "size", "inode"])
def test_changed_files_are_read_again(tmp_path, reads, change):
    file = tmp_path / "a"
    file.write_text("one")
    os.utime(file, ns=(10, 10))
    known = Fingerprints(tmp_path / "cache.json")
    before = known.sha256(file)
    if change == "content":
        file.write_text("two")
    elif change == "size":
        file.write_text("three")
        os.utime(file, ns=(10, 10))
    else:
        (tmp_path / "b").write_text("two")
        os.replace(tmp_path / "b", file)
        os.utime(file, ns=(10, 10))
    assert known.sha256(file) != before and len(reads) == 2


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_cache_of_no_use_is_done_without(tmp_path, content):
    (tmp_path / "cache.json").write_text(content)
    (tmp_path / "a").write_text("one")
    assert Fingerprints(tmp_path / "cache.json").sha256(tmp_path / "a") == hashlib.sha256(b"one").hexdigest()


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "file").write_text("in the way of a folder")
    known = Fingerprints(tmp_path / "file" / "cache.json")
    assert known.sha256(tmp_path / "file") == hashlib.sha256(b"in the way of a folder").hexdigest()
    known.save()
    assert (tmp_path / "file").read_text() == "in the way of a folder"
    assert not Fingerprints(tmp_path / "file" / "cache.json").knows(tmp_path / "file")
