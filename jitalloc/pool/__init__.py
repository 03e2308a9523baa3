"""Pages: who holds which, and what is free.

`state` layout and invariants, `records` what a pool answers with, `holders` who is told when pages
move, `upkeep` arrays, checks, sizes and files, `pool` what it does; `*_cuda` the same on the GPU.
"""

from jitalloc.pool.holders import Moves
from jitalloc.pool.pool import FreeGroup, PageBatch, PagePool
from jitalloc.pool.records import PoolSnapshot, PoolStats

__all__ = ["FreeGroup", "Moves", "PageBatch", "PagePool", "PoolSnapshot", "PoolStats"]
