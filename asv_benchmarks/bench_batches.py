"""`plan` and `allocate_batch`: a step's new prompts, as one call and as a call for each."""

from __future__ import annotations

import numpy as np

import jitalloc

number = 1
repeat = 25

PAGE_SIZE = 16


class Batches:
    """Prompts of 40 tokens, the first page cached, that begin and end 20 times, or are planned."""

    params = ((16, 256), ("allocate_batch", "allocate", "plan"))
    param_names = ("prompts", "design")

    def setup(self, prompts: int, design: str) -> None:
        pool = jitalloc.PagePool(10_000, PAGE_SIZE)
        prefix = jitalloc.PrefixCache(pool)
        self.cache = jitalloc.PagedKVCache(pool, prompts, 64, prefix_cache=prefix)
        self.cache.allocate("before", tokens=range(PAGE_SIZE))
        self.cache.commit("before")
        self.cache.free("before")
        own = np.arange(40 * prompts, dtype=np.int32).reshape(prompts, 40)
        own[:, :PAGE_SIZE] = np.arange(PAGE_SIZE)
        self.each, self.tokens = list(own), own.reshape(-1)
        self.indptr = np.arange(prompts + 1) * 40
        self.ids, self.rows = range(prompts), np.arange(prompts, dtype=np.int32)
        self.time_batches_x20(prompts, design)

    def time_batches_x20(self, prompts: int, design: str) -> None:
        cache = self.cache
        for _ in range(20):
            if design == "plan":
                cache.plan(self.tokens, self.indptr)
                continue
            if design == "allocate":
                for seq_id, tokens in enumerate(self.each):
                    cache.allocate(seq_id, tokens=tokens)
            else:
                cache.allocate_batch(self.tokens, self.indptr, ids=self.ids)
            cache.free_batch(self.rows, commit=False)
