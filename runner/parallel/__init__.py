"""The processes of one run. Rank 0 leads: it follows the plan as if it were alone, writes and speaks. The others serve.

    mesh       how they meet and exchange messages
    cfg        the two branches of guidance on two of them
    launcher   torchrun, for ranks that end with their desk and fail in few words

Models, stages and schemes know nothing of it: what is parallel is put around them from outside. Imports no torch.
"""

from __future__ import annotations


class PeerLost(ConnectionError):
    """Another process of the run is gone, or has not answered in time. Why it went is for that process, or for who
    started it, to say."""

    def __init__(self, rank: int, hangs: str = "") -> None:
        super().__init__(f"rank {rank} {hangs or 'is gone'}")
        self.rank, self.hangs = rank, bool(hangs)
