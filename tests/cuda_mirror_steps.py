"""A mirror on the GPU of a cache on the CPU: random calls, then the exports of both."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np

from jitalloc.gpu import device as _cuda_device
from jitalloc.sequences.state import LENGTH, table_arrays
from jitalloc.state import HEADER_SLOTS
from tests.sharing_pairs import SharingPair, random_turn
from tests.sharing_steps import resize, restore


def up(values: Any, dtype: Any = np.int32) -> Any:
    return _cuda_device.device().upload(np.array(values, dtype))


def down(values: Any) -> Any:
    return _cuda_device.device().download(values)


def agree(mirror: Any, cache: Any) -> None:
    """The mirror has the rows of the cache, bit by bit, and its exports say the same."""
    tables, fetch = cache.tables, mirror._record._gpu.download
    sizes = tables.max_sequences, tables.max_pages_per_sequence
    there, here = table_arrays(fetch(mirror._there._slab), *sizes), tables.arrays
    assert there.taken.tolist() == here.taken.tolist()
    assert there.columns[LENGTH].tolist() == here.columns[LENGTH].tolist()
    assert there.pages.tolist() == here.pages.tolist()
    assert not fetch(mirror._record._words)[HEADER_SLOTS:].any(), "of a pool that is not there"
    live = np.flatnonzero(np.unpackbits(here.taken.view(np.uint8), bitorder="little"))
    rows = live[::-1].astype(np.int32)
    lengths = cache.seq_lens(rows)
    owner = np.repeat(rows, lengths)
    positions = np.concatenate([np.arange(length) for length in lengths] or [np.arange(0)])
    got = [
        mirror.block_tables(up(rows)),
        mirror.seq_lens(up(rows)),
        mirror.slot_mapping(up(owner), up(positions, np.int64)),
        *mirror.page_table_csr(up(rows)),
        *mirror.attention_batch(up(rows), 0),
    ]
    expected = [
        cache.block_tables(rows),
        lengths,
        cache.slot_mapping(owner, positions),
        *cache.page_table_csr(rows),
        *cache.attention_batch(rows, 0),
    ]
    for mine, theirs in zip(got, expected, strict=True):
        assert (fetch(mine).tolist(), mine.dtype) == (theirs.tolist(), theirs.dtype)
    mirror.check()


class MirrorPair(SharingPair):
    """A cache of the CPU with its model, and a mirror of it on the GPU."""

    def __init__(self, random: Random, rounds: int, **options: Any) -> None:
        super().__init__(**options)
        for _ in range(rounds):
            random_turn(self, random)
        self.mirror: Any = self.cache.mirror("cuda")


def follow(pair: MirrorPair, random: Random) -> None:
    """Some calls, of which the mirror learns in one go."""
    for _ in range(random.choice((1, 1, 2, 7))):
        random.choices((random_turn, resize, restore), weights=(30, 1, 1))[0](pair, random)
    before = pair.mirror._sent.copy()
    rows = pair.mirror.refresh()
    assert (rows > 0) == (before.tolist() != pair.mirror._sent.tolist())
    assert pair.mirror.refresh() == 0
    agree(pair.mirror, pair.cache)


CUDA_STEPS = {"mirror_apply_cuda": follow}
WITHOUT_TWIN: dict[str, str] = {}
