"""torchrun with two manners: its ranks end with whoever started it, and of one that failed it says which and how.

Takes the arguments of torch.distributed.run. Where the environment names a file in RUNNER_RANKS, the exit status of
each rank that failed is written there ({"1": -9}: rank 1 by signal 9).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from runner.store import lifeline
from runner.store.status import FAILED

RANKS = "RUNNER_RANKS"


def main(arguments: Sequence[str]) -> int:
    """Start the ranks and wait for them; the exit status."""
    lifeline.hold()
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    os.environ[lifeline.LAUNCHER] = str(os.getpid())
    try:
        torchrun.run(torchrun.parse_args(list(arguments)))
    except ChildFailedError as failed:
        if RANKS in os.environ:
            ended = {str(rank): failure.exitcode for rank, failure in failed.failures.items()}
            Path(os.environ[RANKS]).write_text(json.dumps(ended), encoding="utf-8")
        return FAILED
    except SignalException as asked:
        return 128 + asked.sigval
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
