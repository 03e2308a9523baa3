"""Compiles what a replay calls, so that its figures do not contain the compiler."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import numpy as np

from jitalloc.errors import OutOfPages
from jitalloc.pool import PagePool
from jitalloc.prefix import PrefixCache
from jitalloc.replay.options import ReplayOptions
from jitalloc.replay.transfers import Transfers
from jitalloc.sequences import PagedKVCache
from jitalloc.warming import Precompiled

LOOKS: Final = (
    "prefix_upkeep_check_cpu",
    "tables_check_cpu",
    "upkeep_check_cpu",
    "sharing_check_cpu",
    "upkeep_stats_cpu",
    "tables_slots_cpu",
    "tables_total_cpu",
    "tables_csr_cpu",
    "tables_width_cpu",
    "tables_padded_cpu",
    "prefix_upkeep_roots_cpu",
)
"""Kernels that only look: they share few helpers with those that change something."""


def prepare(options: ReplayOptions) -> None:
    """Compile what a replay calls; a few milliseconds where all of it is in the disk cache."""
    pools = [PagePool(4, 1, order=options.order, device=options.device) for _ in range(2)]
    cache = PagedKVCache(pools[0], 2, 4)
    with Precompiled(LOOKS if options.device == "cpu" else ()) as elsewhere:
        _change(cache)
        if options.prefix_policy is not None:
            prefix = PrefixCache(pools[1], policy=options.prefix_policy)
            sharing = PagedKVCache(pools[1], 2, 4, prefix_cache=prefix)
            _share(sharing)
        elsewhere.wait()
        _look(cache)
        if options.policy != "none":
            sharing.check()
            prefix.stats()


def _change(cache: PagedKVCache) -> None:
    transfers = Transfers(cache.pool)
    cache.allocate(0, 1)
    cache.allocate(1, 1)
    rows = cache.rows([0, 1])
    cache.append_batch(rows, 1)
    with suppress(OutOfPages):
        cache.append_batch(rows, 1)
        transfers.settle()
    cache.free(0)
    cache.free_batch(rows[1:])
    cache.allocate(0, 4)  # more than the freelist has: merges
    cache.free(0)


def _share(cache: PagedKVCache) -> None:
    """Do what caching adds: look-ups, growth, eviction under pressure, refusals."""
    transfers = Transfers(cache.pool)
    tokens = transfers.up(np.arange(4, dtype=np.int32))
    cache.allocate(0, tokens=tokens[:2], compute=0)
    cache.commit(0)
    cache.allocate(1, tokens=tokens[:2], compute=0)
    rows = cache.rows([0, 1])
    cache.commit_batch(rows, transfers.up(np.ones(2, np.int32)))
    cache.append_batch(rows, 1, tokens=tokens[2:])
    with suppress(OutOfPages):
        cache.append_batch(rows, 1, tokens=tokens[:2])
        transfers.settle()
    cache.truncate(1, 1)
    cache.free(1, commit=False)
    cache.free_batch(rows[:1])
    cache.allocate(1, tokens=tokens[::-1].copy(), compute=0)
    with suppress(OutOfPages):
        cache.allocate(0, tokens=tokens, compute=0)
    cache.free(1)


def _look(cache: PagedKVCache) -> None:
    cache.allocate(0, 1)
    rows = cache.rows([0])
    cache.slot_mapping(rows, Transfers(cache.pool).up(np.zeros(1, np.int64)))
    cache.page_table_csr(rows)
    cache.block_tables(rows)
    cache.check()
    cache.stats()
    cache.free(0)
    cache.pool.check()
    cache.pool.stats()
