"""A block table of the host that rows of the GPU are brought into, for loops that run there."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from jitalloc.gpu.record import FAULT_STATUS, RECORD_SLOTS
from jitalloc.gpu.slab import ITEMS, blocks_for
from jitalloc.pool.state import FREE, RELEASED
from jitalloc.prefix.prefix_cuda import FETCHED
from jitalloc.sequences.loops.sharing_cuda import (
    FACT_COMPUTED,
    FACT_GAP,
    FACT_KNOWN,
    FACT_LENGTH,
    FACT_NAMESPACE,
    FACT_PAGE,
    FACT_ROW,
    FACT_TOLD,
    FACTS,
    sharing_facts_cuda,
    sharing_gather_cuda,
)
from jitalloc.sequences.state import (
    COMPUTED,
    GAP,
    KNOWN,
    LENGTH,
    LOCK_END,
    LOCKED,
    NAMESPACE,
    table_arrays,
    table_slab_words,
)
from jitalloc.state import INT32, INT64, NULL

MOST_THREADS: Final = 32768  # that copy
FIRST: Final = 8192  # words that are fetched at once: 64 KB; more where a call needs more


class FetchedRows:
    """What has come down of some rows.

    Attributes
    ----------
    words : int64[FETCHED]
        The record and the header of the pool.
    available : int
        Pages that can be allocated.
    locks : int64[2 * max_sequences]
        What all rows lock: how many pages, then the last page of each path.
    facts : int64[B, FACTS]
    starts : int64[B + 1]
        Row `i` has `pages[starts[i] : starts[i + 1]]`, from its page `facts[i, FACT_PAGE]` on.
    pages, owners : int32[starts[B]]
    told : int32[n]
        Pages whose token ids have come.
    tokens : int32[n, page_size]
    given : int32[any]
        The tokens that the caller has on the GPU.
    """

    __slots__ = (
        "available",
        "facts",
        "given",
        "locks",
        "owners",
        "pages",
        "starts",
        "tokens",
        "told",
        "words",
    )

    def __init__(
        self, words: NDArray[np.int64], rows: int, batch: int, given: int, page_size: int
    ) -> None:
        self.words = words[:FETCHED]
        header = words[RECORD_SLOTS:]
        self.available = int(header[FREE] + header[RELEASED])
        self.locks = words[FETCHED : FETCHED + 2 * rows]
        at = FETCHED + 2 * rows
        self.facts = words[at : at + FACTS * batch].reshape(batch, FACTS)
        at += FACTS * batch
        self.starts = words[at : at + batch + 1]
        told_starts = words[at + batch + 1 : at + 2 * (batch + 1)]
        rest = words[at + 2 * (batch + 1) :].view(INT32)
        count, told = int(self.starts[batch]), int(told_starts[batch])
        self.given = rest[:given]
        self.pages = rest[given : given + count]
        self.owners = rest[given + count : given + 2 * count]
        at = given + 2 * count
        self.tokens = rest[at : at + told * page_size].reshape(told, page_size)
        places = np.arange(told) - np.repeat(told_starts[:-1], np.diff(told_starts))
        firsts = self.facts[:, FACT_TOLD] - self.facts[:, FACT_PAGE] + self.starts[:-1]
        self.told = self.pages[places + np.repeat(firsts, np.diff(told_starts))]

    @property
    def live(self) -> NDArray[np.int32]:
        """The rows in which sequences live, in the order of the batch."""
        rows = self.facts[:, FACT_ROW]
        return rows[rows >= 0].astype(INT32)

    def places(self, width: int) -> NDArray[np.int64]:
        """Return where `pages` stand in a block table of rows of `width` pages."""
        counts = np.diff(self.starts)
        firsts = self.facts[:, FACT_ROW] * width + self.facts[:, FACT_PAGE] - self.starts[:-1]
        return np.arange(self.pages.size) + np.repeat(firsts, counts)

    @property
    def sound(self) -> bool:
        """Whether somebody lives in all rows but those of padding, each named once."""
        live = self.live
        return bool((self.facts[:, FACT_ROW] >= NULL).all()) and np.unique(live).size == live.size


class HostTable:
    """A block table of the host, as large as one on the GPU, which rows are brought into.

    Attributes
    ----------
    slab : int64[...]
        Between calls nobody lives in it.
    arrays : TableArrays
    """

    def __init__(self, tables: Any) -> None:
        self.tables = tables
        rows, width = tables.max_sequences, tables.max_pages_per_sequence
        self.slab = np.zeros(table_slab_words(rows, width), INT64)
        for slot, value in tables._sizes().items():
            self.slab[slot] = value
        self.arrays = table_arrays(self.slab, rows, width)
        self._there = tables.pool._gpu.empty(0, INT64)

    def fetch(self, known: Any, rows: Any, counts: Any, tokens: Any, rule: int) -> FetchedRows:
        """Bring facts, pages and token ids of rows down; `rule`: `ALL_PAGES`, `ALL_TOKENS`.

        `counts`: how many of their tokens are said to be computed; without any, all are.
        Waits once, or twice where it is more than ever before. Raises the first failure.
        """
        pool, batch = self.tables.pool, rows.size
        gpu, height = pool._gpu, self.tables.max_sequences
        fixed = FETCHED + 2 * height + FACTS * batch + 2 * (batch + 1)
        need = fixed + (tokens.size + 1) // 2
        bound = gpu.wrap(pool._words), self.tables._state
        while True:
            if self._there.size < max(need, FIRST):
                self._there = gpu.empty(max(need, FIRST, 2 * self._there.size), INT64)
            there = self._there
            arrays = [gpu.wrap(each) for each in (rows, counts, there[:fixed])]
            gpu.launch(sharing_facts_cuda, 1, gpu.threads, *bound, *arrays, rule)
            facts, out = there[fixed - (FACTS + 2) * batch - 2 : fixed], there[fixed:].view(INT32)
            if batch or tokens.size:
                arrays = [gpu.wrap(each) for each in (known, tokens, facts, out)]
                blocks = blocks_for(gpu, min(out.size, MOST_THREADS * ITEMS))
                gpu.launch(sharing_gather_cuda, blocks, gpu.threads, *bound, *arrays)
            here: NDArray[np.int64] = gpu.download(there[: max(need, FIRST)])
            if here[FAULT_STATUS]:
                pool._settled()
            pool._meet(here)
            need = fixed + self._payload(here, fixed, batch, tokens.size)
            if need <= there.size:
                break
        if need > here.size:
            here = np.concatenate([here, gpu.download(there[here.size : need])])
        return FetchedRows(here[:need], height, batch, tokens.size, self.tables.page_size)

    def _payload(self, here: NDArray[np.int64], fixed: int, batch: int, given: int) -> int:
        """Return how many words stand behind the fixed ones."""
        pages, told = int(here[fixed - batch - 2]), int(here[fixed - 1])
        size: int = self.tables.page_size
        return (given + 2 * pages + told * size + 1) // 2

    def bring(self, got: FetchedRows) -> None:
        """Let the sequences of the rows that have come down live here."""
        columns, pages, taken = self.arrays.columns, self.arrays.pages, self.arrays.taken
        height = self.tables.max_sequences
        for i, fact in enumerate(got.facts.tolist()):
            row = fact[FACT_ROW]
            if row >= 0:
                mine = got.pages[got.starts[i] : got.starts[i + 1]]
                pages[row] = NULL
                pages[row, fact[FACT_PAGE] : fact[FACT_PAGE] + mine.size] = mine
                columns[LENGTH, row], columns[KNOWN, row] = fact[FACT_LENGTH], fact[FACT_KNOWN]
                columns[NAMESPACE, row], columns[GAP, row] = fact[FACT_NAMESPACE], fact[FACT_GAP]
                columns[COMPUTED, row] = fact[FACT_COMPUTED]
                columns[LOCKED, row] = got.locks[row]
                columns[LOCK_END, row] = got.locks[height + row]
                taken[row >> 6] |= np.uint64(1 << (row & 63))

    def bring_all(self) -> None:
        """Let all sequences live here. Waits."""
        self.slab[:] = self.tables.pool._gpu.download(self.tables._slab)

    def pages_now(self, got: FetchedRows) -> NDArray[np.int32]:
        """Return what stands here where the pages stood that have come down."""
        parts = [got.pages[:0]]
        for i, fact in enumerate(got.facts.tolist()):
            count = int(got.starts[i + 1] - got.starts[i])
            first = fact[FACT_PAGE]
            parts.append(self.arrays.pages[max(fact[FACT_ROW], 0), first : first + count])
        return np.concatenate(parts)

    def leave(self) -> None:
        """Let nobody live here any more."""
        self.arrays.taken[:] = 0
