"""`room_for`: how many sequences can go on, asked before each step of a scheduler."""

from __future__ import annotations

import numpy as np

import jitalloc

number = 1
repeat = 25


class RoomFor:
    """One question about a batch, beside the append that a scheduler would try instead."""

    params = ((16, 256, 1024), ("room_for", "append and truncate"))
    param_names = ("sequences", "design")

    def setup(self, sequences: int, design: str) -> None:
        pool = jitalloc.PagePool(100_000)
        self.cache = jitalloc.PagedKVCache(pool, sequences, 64)
        for i in range(sequences):
            self.cache.allocate(i, 512 + i % 16)
        self.rows = np.arange(sequences, dtype=np.int32)
        self.cache.room_for(self.rows)
        self.cache.append_batch(self.rows)
        self.cache.truncate_batch(self.rows, drop=1)

    def time_room_x100(self, sequences: int, design: str) -> None:
        cache, rows = self.cache, self.rows
        if design == "room_for":
            for _ in range(100):
                cache.room_for(rows)
        else:
            for _ in range(100):
                cache.append_batch(rows)
                cache.truncate_batch(rows, drop=1)
