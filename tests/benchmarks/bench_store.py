"""What the store costs: committing, finding and linking an artifact, against plain hashing, looking and copying.

    python tests/benchmarks/bench_store.py [--megabytes 256] [--files 64] [--rounds 9]

The two arms of a ratio run in turn on the same bytes; wall time, since disks are most of it; medians with quartiles.
(bench_desk.py has the store's share of a stage, and whole commands.)
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from processor_line import say_processor

from runner.store.artifacts import MANIFEST, Store
from runner.store.durable import sync_tree
from runner.store.fingerprints import sha256

KEY = "0123456789abcdef"
PAIRS = {"commit": "fsync and sha256", "find, reading all": "sha256", "find": "stat", "link": "copy"}


def write(folder: Path, data: bytes, files: int) -> Path:
    """Equally large files, not on disk yet."""
    os.sync()
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        (folder / f"{number:04d}").write_bytes(data)
    return folder


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name != MANIFEST]


def measure(root: Path, data: bytes, files: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each arm in each round."""
    store, plain = Store(root / ".store"), root / "plain"
    seconds: dict[str, list[float]] = defaultdict(list)

    def timed(arm: str, function: Callable[..., object], *arguments: object) -> None:
        start = time.perf_counter()
        function(*arguments)
        seconds[arm].append(time.perf_counter() - start)

    def hashed() -> None:
        for path in files_of(plain):
            sha256(path)

    def on_disk() -> None:
        sync_tree(plain)
        hashed()

    for _ in range(rounds):
        write(plain, data, files)
        timed("fsync and sha256", on_disk)
        timed("commit", store.commit, write(store.draft("dump", KEY), data, files), "dump", KEY)
        entry = store.find("dump", KEY)
        assert entry is not None
        timed("stat", lambda: [path.stat() for path in files_of(plain)])
        timed("find", store.find, "dump", KEY)
        timed("sha256", hashed)
        timed("find, reading all", store.find, "dump", KEY, True)
        timed("copy", shutil.copytree, plain, root / "copy")
        timed("link", store.link, entry, root / "run")
        for folder in (plain, root / "copy", root / "run"):
            shutil.rmtree(folder)
        store.discard(entry.path)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("megabytes", 256), ("files", 64), ("rounds", 9)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    say_processor()
    with tempfile.TemporaryDirectory() as folder:
        data = os.urandom(asked.megabytes * 1_000_000 // asked.files)
        seconds = measure(Path(folder), data, asked.files, asked.rounds)
    print(f"an artifact of {asked.files} files, {asked.megabytes} MB")
    for ours, plain in PAIRS.items():
        ratios = [a / b for a, b in zip(seconds[ours], seconds[plain], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        milliseconds = 1e3 * statistics.median(seconds[ours])
        print(f"{ours:<18} {milliseconds:8.1f} ms   x {middle:.3g} ({low:.3g} to {high:.3g}) of {plain}")


if __name__ == "__main__":
    main()
