"""`attention_batch`, beside the four exports that it takes the place of."""

from __future__ import annotations

from typing import Any

import numpy as np

import jitalloc

number = 1
repeat = 25

DESIGNS = ("one call", "one call, buffers", "int32", "four calls")


class AttentionBatch:
    """All that an attention call reads of 256 sequences of 2,048 tokens: a step, or chunks."""

    params = ((1, 128), DESIGNS)
    param_names = ("new", "design")

    def setup(self, new: int, design: str) -> None:
        pool = jitalloc.PagePool(40_000)
        self.cache = jitalloc.PagedKVCache(pool, 256, 130)
        for i in range(256):
            self.cache.allocate(i, 2048 - i % 16)
        self.rows = np.random.default_rng(0).permutation(256).astype(np.int32)
        self.out = self.cache.attention_batch(self.rows, new)

    def time_attention_batch_x100(self, new: int, design: str) -> None:
        cache, rows = self.cache, self.rows
        options: dict[str, Any] = {
            "one call, buffers": {"out": self.out},
            "int32": {"dtype": np.int32},
        }.get(design, {})
        for _ in range(100):
            if design == "four calls":
                self.four_calls(new)
            else:
                cache.attention_batch(rows, new, **options)

    def four_calls(self, new: int) -> None:
        """As an engine has to put it together without."""
        cache, rows = self.cache, self.rows
        lengths = cache.seq_lens(rows)
        starts = np.arange(0, new * rows.size + 1, new, dtype=np.int32)
        positions = (lengths.astype(np.int64)[:, None] + np.arange(-new, 0)).reshape(-1)
        slots = cache.slot_mapping(np.repeat(rows, new), positions)
        self.made = starts, positions, slots, lengths, cache.page_table_csr(rows)
