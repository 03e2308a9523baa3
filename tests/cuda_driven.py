"""Steps that a GPU drives: how much grows, is rejected and ends is said by buffers on the GPU."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np

from jitalloc import NULL, AttentionBatch, PageTableCSR
from jitalloc.sequences.state import LENGTH
from jitalloc.state import INT32, INT64
from tests.cuda_cache_pairs import Both

DRAFTS = 3  # tokens that a step appends to a row beside the one that is sure


class DrivenSteps:
    """One step on buffers that stay, and the same on the CPU by what the buffers hold."""

    def __init__(self, batch: int, order: str, seed: int = 0) -> None:
        self.random, self.batch = Random(f"{seed} {order}"), batch
        pool = {"num_pages": 12 * batch, "page_size": 4, "order": order}
        self.both = Both(pool, batch, 24)
        up, ints = self.both.gpu.up, np.zeros(batch)
        self.rows = up(np.full(batch, NULL), INT32)
        self.counts, self.drop = up(ints, INT32), up(ints, INT64)
        self.ended = up(np.full(batch, NULL), INT32)
        self.left = up(np.full(batch, NULL), INT32)
        self.slots = up(np.zeros(batch * (1 + DRAFTS)), INT64)
        self.copies = up(np.zeros((2, batch)), INT32)
        self.numbers = up([0], INT64), up([0], INT64)
        self.table, self.lengths = up(np.zeros((batch, 24)), INT32), up(ints, INT32)
        sizes = batch + 1, 24 * batch, batch
        self.csr = PageTableCSR(*(up(np.zeros(size), INT32) for size in sizes))
        self.new = up(ints, INT32)
        ends, facts = up(np.zeros(batch + 1), INT32), up(ints, INT32)
        self.attention = AttentionBatch(
            ends,
            self.slots.copy(),
            self.slots.copy(),
            ends.copy(),
            self.csr.indices.copy(),
            facts,
            facts.copy(),
        )
        self.begun = 0
        self.now: dict[str, list[int]] = {}

    def on_gpu(self) -> None:
        """The step: nothing in it waits, and nothing of it is known to the host."""
        cache = self.both.device
        rejected, freed = self.numbers
        cache.append_batch(self.rows, self.counts, out=self.slots, copies=self.copies)
        cache.truncate_batch(self.rows, drop=self.drop, out=rejected)
        cache.free_batch(self.ended, commit=False, out=freed)
        cache.block_tables(self.left, out=self.table)
        cache.seq_lens(self.left, out=self.lengths)
        cache.page_table_csr(self.left, out=self.csr)
        cache.attention_batch(self.left, self.new, out=self.attention)

    def fill(self, buffer: Any, name: str, values: list[int]) -> None:
        """Give a buffer new contents."""
        self.now[name] = values
        buffer[:] = self.both.gpu.up(values, np.dtype(buffer.dtype))

    def plan(self) -> None:
        """New sequences begin where few are left; then say what the next step does to all."""
        both, random = self.both, self.random
        if len(both.cpu) < self.batch // 2:
            both.device.stats()  # it waits, so the host learns of rows that have become free
            for _ in range(random.randrange(1, self.batch // 2)):
                both.must("allocate", self.begun, random.choice((0, 3, 9)))
                self.begun += 1
            if len(both.cpu) < self.batch:
                both.must("fork", random.choice(both.cpu.ids), self.begun)
                self.begun += 1
        live = [*both.cpu._ids.rows.values()]
        length = both.cpu.tables.arrays.columns[LENGTH]
        random.shuffle(live)
        rows = [*live, *[NULL] * (self.batch - len(live))]
        random.shuffle(rows)
        counts = [random.randrange(1, 2 + DRAFTS) if row != NULL else 0 for row in rows]
        drop = [random.randrange(n) if n else 0 for n in counts]
        kept = [length[row] + n - d for row, n, d in zip(rows, counts, drop, strict=True)]
        over = [n > 60 or random.random() < 0.15 for n in kept]
        ends = [row != NULL and at_end for row, at_end in zip(rows, over, strict=True)]
        self.fill(self.rows, "rows", rows)
        self.fill(self.counts, "counts", counts)
        self.fill(self.drop, "drop", drop)
        ended = [row if end else NULL for row, end in zip(rows, ends, strict=True)]
        self.fill(self.ended, "ended", ended)
        left = [NULL if end else row for row, end in zip(rows, ends, strict=True)]
        self.fill(self.left, "left", left)
        # What stays of what is appended is new; a row that has ended keeps its place.
        self.fill(self.new, "new", [n - d for n, d in zip(counts, drop, strict=True)])

    def on_cpu(self) -> None:
        """The step by the CPU, which is given no rows of NULL; all results must be the same."""
        cache, down, now = self.both.cpu, self.both.gpu.gpu.download, self.now
        at = [i for i, row in enumerate(now["rows"]) if row != NULL]
        rows, counts, drop = ([now[name][i] for i in at] for name in ("rows", "counts", "drop"))
        slots, copies = cache.append_batch(rows, counts)
        assert down(self.slots)[: slots.size].tolist() == slots.tolist()
        assert (down(self.slots)[slots.size :] == NULL).all()
        assert down(self.copies)[:, : copies.src.size].tolist() == [
            each.tolist() for each in copies
        ]
        rejected, freed = (int(down(each)[0]) for each in self.numbers)
        assert rejected == cache.truncate_batch(rows, drop=drop)
        assert freed == cache.free_batch([row for row in now["ended"] if row != NULL])
        at = [i for i, row in enumerate(now["left"]) if row != NULL]
        left = [now["left"][i] for i in at]
        table, lengths = down(self.table), down(self.lengths)
        assert table[at].tolist() == cache.block_tables(left, width=24).tolist()
        assert lengths[at].tolist() == cache.seq_lens(left).tolist()
        assert lengths.sum() == lengths[at].sum()
        indptr, indices, _last = map(down, self.csr)
        expected = cache.page_table_csr(left)
        assert indices[: expected.indices.size].tolist() == expected.indices.tolist()
        assert indptr[[0, *(i + 1 for i in at)]].tolist() == expected.indptr.tolist()
        self.attention_is_that_of(left, at)

    def attention_is_that_of(self, left: list[int], at: list[int]) -> None:
        """The new tokens of rows of NULL have position 0 and slot NULL, at their places."""
        cache, new = self.both.cpu, self.now["new"]
        got = AttentionBatch(*map(self.both.gpu.gpu.download, self.attention))
        expected = cache.attention_batch(left, [new[i] for i in at])
        assert got.qo_indptr.tolist() == [0, *np.cumsum(new).tolist()]
        total = int(got.qo_indptr[-1])
        mine = np.isin(np.repeat(np.arange(self.batch), new), at)
        for made, wanted, pad in (
            (got.slots, expected.slots, NULL),
            (got.positions, expected.positions, 0),
        ):
            assert made[:total][mine].tolist() == wanted.tolist()
            assert (made[:total][~mine] == pad).all()
            assert (made[total:] == pad).all()
        pages = expected.kv_indices.size
        assert got.kv_indices[:pages].tolist() == expected.kv_indices.tolist()
        assert (got.kv_indices[pages:] == NULL).all()
        assert got.seq_lens[at].tolist() == expected.seq_lens.tolist()
        assert got.kv_last_page_len[at].tolist() == expected.kv_last_page_len.tolist()
        assert got.kv_indptr[[0, *(i + 1 for i in at)]].tolist() == expected.kv_indptr.tolist()
