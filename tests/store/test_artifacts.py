"""Artifacts appear whole, are found whole, and are made again when they are not."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from runner.config.faults import Refused
from runner.store import durable, fingerprints, machine
from runner.store.artifacts import Store, StoreFull
from runner.store.locks import Held

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


@pytest.mark.parametrize("redo", [False, True])
def test_trials_are_no_part_of_an_artifact_and_stay_until_it_is_there(store, monkeypatch, redo):
    if redo:
        make(store)
    draft = store.draft("calibrate", KEY, redo=redo)
    for name in ("prompt-000", "trials/0000"):
        (draft / name).mkdir(parents=True)
        (draft / name / "latents").write_text("latents")
    with monkeypatch.context() as patched, pytest.raises(pytest.fail.Exception):
        patched.setattr("runner.store.artifacts.exchange" if redo else "os.rename", lambda *_: pytest.fail())
        store.commit(draft, "calibrate", KEY)
    again = store.draft("calibrate", KEY, redo=redo)
    assert names(again) == {"prompt-000/latents", "trials/0000/latents"}
    entry = store.commit(again, "calibrate", KEY)
    assert entry.files == ("prompt-000/latents",) and names(entry.path) == {"manifest.json", *entry.files}
    assert not again.exists()


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


def no_wait(holder: str) -> None:
    pytest.fail(f"waited for {holder}")


def claim_and_make(store: Store, text: str, redo: float | None = None, waiting: Callable[[str], None] = no_wait) -> str:
    """What a run does with a stage; the text that it finds in the artifact."""
    with store.claim("calibrate", KEY, "run", waiting, redo) as entry:
        if entry is None:
            draft = store.draft("calibrate", KEY, redo=redo is not None)
            (draft / "ranges.json").write_text(text)
            entry = store.commit(draft, "calibrate", KEY)
        return (entry.path / "ranges.json").read_text()


def test_one_makes_it_and_the_others_take_it(store):
    made, waited, got = [], [], []

    def run(name: str) -> None:
        with store.claim("calibrate", KEY, name, waited.append) as entry:
            if entry is None:
                made.append(name)
                draft = store.draft("calibrate", KEY)
                time.sleep(0.5)
                (draft / "ranges.json").write_text(name)
                entry = store.commit(draft, "calibrate", KEY)
            got.append((entry.path / "ranges.json").read_text())

    threads = [threading.Thread(target=run, args=[f"run-{number}"]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(made) == 1 and got == made * 4
    assert waited == [f"process {os.getpid()} ({made[0]})"] * 3


def test_what_is_being_linked_is_not_removed(store):
    make(store)
    with store.claim("calibrate", KEY, "run", no_wait) as entry:
        assert entry is not None
        with store.claim("calibrate", KEY, "another run", no_wait) as too:
            assert too == entry
        with pytest.raises(Held), store.alone(f"calibrate-{KEY}"):
            pass
    with store.alone(f"calibrate-{KEY}"):
        pass


def test_loose_files_of_a_draft_do_not_outlive_a_crash(store):
    """A killed writer leaves its own temporary file; nobody knows its name."""
    draft = store.draft("quantize", KEY)
    (draft / ".draft-x1y2.safetensors").write_text("half")
    (draft / "prompt-000").mkdir()
    (draft / "prompt-000" / "frames").write_text("frames")
    assert names(store.draft("quantize", KEY)) == {"prompt-000/frames"}


@pytest.mark.parametrize("swaps", [True, False])
def test_redone_artifact_takes_the_place_and_links_keep_what_they_had(store, tmp_path, monkeypatch, swaps):
    if not swaps:
        monkeypatch.setattr("runner.store.artifacts.exchange", lambda *_: False)
    assert claim_and_make(store, "old") == "old"
    linked = store.link(store.find("calibrate", KEY), tmp_path / "run")
    asked = time.time() + 1  # the clock of a file system ticks more slowly
    os.utime(store.root / f"calibrate-{KEY}" / "manifest.json", (asked - 5, asked - 5))
    assert claim_and_make(store, "new", redo=asked - 2) == "new"
    assert claim_and_make(store, "newer", redo=asked - 2) == "new", "two runs of one command make it again once"
    assert (linked / "ranges.json").read_text() == "old"
    assert store.find("calibrate", KEY, thorough=True) is not None
    assert not list((store.root / "drafts").iterdir()) and not list((store.root / "discarded").iterdir())
    assert not (store.root / "damaged").exists()


def test_redo_goes_on_where_it_was_cut_off_but_not_with_what_was_stored(store, monkeypatch):
    make(store, "old")
    before = time.time() - 100
    os.utime(store.root / f"calibrate-{KEY}" / "manifest.json", (before, before))
    part = store.draft("calibrate", KEY, redo=True) / "prompt-000"
    assert not part.exists()
    part.mkdir()
    (part / "latents").write_text("again")
    draft = store.draft("calibrate", KEY, redo=True)
    assert names(draft) == {"prompt-000/latents"}
    (draft / "ranges.json").write_text("new")

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(store, "_move_aside", die)  # both have changed places, and the old one is not removed yet
        store.commit(draft, "calibrate", KEY)
    entry = store.find("calibrate", KEY)
    assert entry is not None and (entry.path / "ranges.json").read_text() == "new"
    assert not names(store.draft("calibrate", KEY, redo=True)), "the old parts are not taken for redone ones"


def test_a_newer_version_s_artifact_is_neither_read_nor_replaced(store):
    make(store)
    manifest = store.root / f"calibrate-{KEY}" / "manifest.json"
    manifest.write_text(json.dumps({"format": 2, "files": [["ranges.json", "blake3"]]}))
    before = manifest.read_bytes()
    with pytest.raises(Refused, match=r"manifest of format 2, newer than 1; update the runner, or take another output"):
        store.find("calibrate", KEY)
    with pytest.raises(Refused):
        claim_and_make(store, "over it")
    with pytest.raises(Refused):
        make(store)
    assert manifest.read_bytes() == before


@contextmanager
def nobody() -> Iterator[None]:
    """Do something as a user to whom permissions apply."""
    if os.getuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that others can reach."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    for below in folder.rglob("*"):
        if below.is_dir():
            below.chmod(0o777)
    shutil.rmtree(folder)


def test_a_read_only_store_is_reused_and_says_so_before_work(public):
    store = Store(public / ".store")
    make(store)
    for folder in [store.root, *(path for path in store.root.rglob("*") if path.is_dir())]:
        folder.chmod(0o555)
    with nobody():
        assert isinstance(store.writable(), PermissionError)
        with store.claim("calibrate", KEY, "run", no_wait) as entry:
            assert entry is not None
            linked = store.link(entry, public / "run")
        assert (linked / "ranges.json").read_text() == "ranges"
        with pytest.raises(PermissionError), store.claim("dump", KEY, "run", no_wait):
            pytest.fail("the stage would have run")
    assert Store(public / "other").writable() is None


def test_another_file_system_gets_whole_copies(store):
    if not os.path.isdir("/dev/shm") or os.stat("/dev/shm").st_dev == os.stat(tempfile.gettempdir()).st_dev:
        pytest.skip("no other file system at hand")
    make(store)
    entry = store.find("calibrate", KEY)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as run:
        linked = store.link(entry, Path(run))
        assert (linked / "ranges.json").read_text() == "ranges"
        assert (linked / "ranges.json").stat().st_nlink == 1
        assert names(Path(run)) == {"calibrate/ranges.json", "calibrate/prompt-000/latents"}
        elsewhere = Store(Path(run) / ".store")  # and the other way round: a store that lies elsewhere
        make(elsewhere)
        linked = elsewhere.link(elsewhere.find("calibrate", KEY), store.root.parent / "run")
        assert names(linked) == {"ranges.json", "prompt-000/latents"}


class Disk:
    """Counts the calls that store something and lets the one with number `fails` fail (0: none)."""

    def __init__(self, patched: pytest.MonkeyPatch, fails: int, number: int) -> None:
        self.calls = 0

        def faulty(function: Callable[..., object]) -> Callable[..., object]:
            def call(*arguments: object, **named: object) -> object:
                self.calls += 1
                if self.calls == fails:
                    raise OSError(number, os.strerror(number))
                return function(*arguments, **named)

            return call

        for module, name in (
            *((os, name) for name in ("fsync", "rename", "replace", "mkdir", "link", "pwrite")),
            (Path, "write_text"),
        ):
            patched.setattr(module, name, faulty(getattr(module, name)))


def stage(store: Store, run: Path) -> None:
    """Two prompts and a table, kept and linked."""
    with store.claim("sample", KEY, "run", no_wait) as entry:
        if entry is None:
            draft = store.draft("sample", KEY)
            for name in ("prompt-000", "prompt-001"):
                if not (draft / name).exists():
                    (durable.unfinished(draft / name) / "frames").write_text(name)
                    durable.finish(draft / name)
            (draft / "metrics.json").write_text("{}")
            store.write_measurements("sample", KEY, {"seconds": 1.0})
            entry = store.commit(draft, "sample", KEY)
        store.link(entry, run)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_fault_at_any_write_rename_or_sync_costs_one_run(tmp_path, monkeypatch, number):
    with monkeypatch.context() as patched:
        disk = Disk(patched, 0, number)
        stage(Store(tmp_path / "undisturbed"), tmp_path / "undisturbed-run")
    reference = (tmp_path / "undisturbed" / f"sample-{KEY}" / "manifest.json").read_bytes()
    assert disk.calls > 15
    survived = 0
    for fails in range(1, disk.calls + 1):
        store, run = Store(tmp_path / f"{fails}"), tmp_path / f"run-{fails}"
        with monkeypatch.context() as patched:
            Disk(patched, fails, number)
            try:
                stage(store, run)
                survived += 1  # what only saves work or names a holder may fail
            except StoreFull as full:
                assert number != errno.EIO and "make room" in str(full) and "prune" in str(full)
            except OSError as error:
                assert error.errno == number
        entry = store.find("sample", KEY)  # whole, or not there
        assert entry is None or (entry.path / "manifest.json").read_bytes() == reference
        assert number == errno.EIO or not list(store.root.rglob("*.part")), "no space is held by what was not finished"
        stage(store, run)
        entry = store.find("sample", KEY, thorough=True)
        assert entry is not None and (entry.path / "manifest.json").read_bytes() == reference
        assert names(run / "sample") == {"prompt-000/frames", "prompt-001/frames", "metrics.json"}
        assert not list((store.root / "drafts").iterdir())
    assert survived < disk.calls / 2


def test_a_writer_that_has_words_and_no_number_for_a_full_disk(store):
    with pytest.raises(StoreFull, match="I/O error: No space left on device"), store.claim("dump", KEY, "run", no_wait):
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    with pytest.raises(RuntimeError, match="another"), store.claim("dump", KEY, "run", no_wait):
        raise RuntimeError("another matter")
