"""How the machine runs launches, and how that is asked for."""

from __future__ import annotations

import os
from dataclasses import dataclass

from tests.ptx.layout import Mode, Watch

MODES = {mode.name.lower(): mode for mode in Mode}
WATCHES = {watch.name.lower(): watch for watch in Watch}


@dataclass
class Settings:
    """How launches run.

    Attributes
    ----------
    mode : str
        Blocks and threads in `order`, `reversed`, or at `random`.
    seed : int
        Of the random order; each launch has its own by that.
    watch : tuple of str
        `race`: accesses that nothing orders. `weak`: stores are seen late, and reads are stale.
    quantum : int
        Mean number of accesses of global memory until a thread is left; at random only.
    limit : int
        Instructions of a thread, behind which it is thought not to end.
    resident : int
        Blocks that are under way at once; at random only.
    """

    mode: str = "order"
    seed: int = 1
    watch: tuple[str, ...] = ()
    quantum: int = 20
    limit: int = 1_000_000_000
    resident: int = 16

    def __post_init__(self) -> None:
        wrong = [each for each in self.watch if each not in WATCHES]
        if self.mode not in MODES or wrong:
            raise ValueError(f"mode {self.mode}, watch {self.watch}")


def from_environment() -> Settings:
    """Return what `JITALLOC_GPU_MODE`, `_SEED`, `_WATCH`, `_QUANTUM` and `_LIMIT` ask for."""
    made = Settings(
        os.environ.get("JITALLOC_GPU_MODE", "order"),
        int(os.environ.get("JITALLOC_GPU_SEED", "1")),
        tuple(filter(None, os.environ.get("JITALLOC_GPU_WATCH", "").split(","))),
    )
    made.quantum = int(os.environ.get("JITALLOC_GPU_QUANTUM", made.quantum))
    made.limit = int(os.environ.get("JITALLOC_GPU_LIMIT", made.limit))
    return made


settings = from_environment()
