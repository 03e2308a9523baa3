"""Textbook designs to beat, written plainly, with the interface of a pool.

None of them checks what it is given, except where a design cannot help noticing. Each hands out
the lowest ids first after a `merge`, as `PagePool` does in the order `sorted`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from heapq import heapify, heappop, heappush
from typing import Any

import numpy as np
from numpy.typing import NDArray

import jitalloc

Ints = NDArray[np.int64]


class ListPool:
    """A list of free ids: taken from the front one by one, given back at the end, sorted on merge.

    Taking from the front moves the whole list.
    """

    def __init__(self, num_pages: int) -> None:
        self.free_ids = list(range(num_pages))

    def alloc(self, n: int) -> list[int]:
        if n > len(self.free_ids):
            raise MemoryError(n)
        return [self.free_ids.pop(0) for _ in range(n)]

    def free(self, ids: Iterable[int]) -> None:
        self.free_ids.extend(ids)

    def merge(self) -> None:
        self.free_ids.sort()


class NumpyPool:
    """An array of free ids: taken as a slice, given back by `concatenate`, sorted on merge.

    Frees in a group are concatenated once, at its end.
    """

    def __init__(self, num_pages: int) -> None:
        self.free_ids = np.arange(num_pages, dtype=np.int32)
        self.released = np.empty(0, np.int32)
        self.group: list[NDArray[np.int32]] | None = None

    def alloc(self, n: int) -> NDArray[np.int32]:
        if n > self.free_ids.size:
            self.merge()
        if n > self.free_ids.size:
            raise MemoryError(n)
        taken, self.free_ids = self.free_ids[:n], self.free_ids[n:]
        return taken

    def free(self, ids: NDArray[np.int32]) -> None:
        if self.group is not None:
            self.group.append(ids)
        else:
            self.released = np.concatenate((self.released, ids))

    @contextmanager
    def free_group(self) -> Iterator[None]:
        gathered = self.group = []
        yield
        self.group = None
        self.free(np.concatenate(gathered))

    def merge(self) -> None:
        self.free_ids = np.sort(np.concatenate((self.free_ids, self.released)))
        self.released = self.released[:0]


class DictPool:
    """A dict of reference counts and a deque of free ids.

    The only one that can share pages, and that notices a double free (as a `KeyError`).
    """

    def __init__(self, num_pages: int) -> None:
        self.free_ids = deque(range(num_pages))
        self.owners: dict[int, int] = {}

    def alloc(self, n: int) -> list[int]:
        if n > len(self.free_ids):
            raise MemoryError(n)
        ids = [self.free_ids.popleft() for _ in range(n)]
        for page in ids:
            self.owners[page] = 1
        return ids

    def share(self, ids: Iterable[int]) -> None:
        for page in ids:
            self.owners[page] += 1

    def free(self, ids: Iterable[int]) -> None:
        for page in ids:
            if self.owners[page] > 1:
                self.owners[page] -= 1
            else:
                del self.owners[page]
                self.free_ids.append(page)

    def merge(self) -> None:
        self.free_ids = deque(sorted(self.free_ids))


class BitmaskPool:
    """One big integer, a bit for each free page; the lowest set bit goes first.

    Always sorted, so there is nothing to merge; but each page costs a copy of the integer.
    """

    def __init__(self, num_pages: int) -> None:
        self.free_bits = (1 << num_pages) - 1

    def alloc(self, n: int) -> list[int]:
        if n > self.free_bits.bit_count():
            raise MemoryError(n)
        ids = []
        for _ in range(n):
            lowest = self.free_bits & -self.free_bits
            self.free_bits ^= lowest
            ids.append(lowest.bit_length() - 1)
        return ids

    def free(self, ids: Iterable[int]) -> None:
        for page in ids:
            self.free_bits |= 1 << page


DESIGNS: dict[str, Any] = {
    "jitalloc": jitalloc.PagePool,
    "list": ListPool,
    "numpy": NumpyPool,
    "dict": DictPool,
    "bitmask": BitmaskPool,
}


class ListSequences:
    """Sequences as lists of page ids with a length each, grown one after the other."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.pool = DictPool(num_pages)
        self.page_size = page_size
        self.pages: list[list[int]] = []
        self.lengths: list[int] = []

    def allocate(self, num_tokens: int) -> None:
        self.pages.append(self.pool.alloc(-(-num_tokens // self.page_size)))
        self.lengths.append(num_tokens)

    def append_batch(self, rows: Sequence[int]) -> list[int]:
        """Grow each sequence by one token, copying a shared last page first; return the slots."""
        slots = []
        for row in rows:
            pages, offset = self.pages[row], self.lengths[row] % self.page_size
            if offset == 0:
                pages += self.pool.alloc(1)
            elif self.pool.owners[pages[-1]] > 1:
                self.pool.free(pages[-1:])
                pages[-1:] = self.pool.alloc(1)
            slots.append(pages[-1] * self.page_size + offset)
            self.lengths[row] += 1
        return slots

    def block_tables(self, rows: Sequence[int]) -> NDArray[np.int32]:
        width = max(len(self.pages[row]) for row in rows)
        padded = [self.pages[row] + [-1] * (width - len(self.pages[row])) for row in rows]
        return np.array(padded, np.int32)


def _pages(lengths: Ints, page_size: int) -> Ints:
    return -(-lengths // page_size)


def numpy_extend(
    pool: NumpyPool, page_size: int, prefix_lens: Ints, seq_lens: Ints, last_slots: Ints
) -> Ints:
    """Return what `PagePool.alloc_extend` returns, by whole-array expressions."""
    held = _pages(prefix_lens, page_size)
    need = _pages(seq_lens, page_size) - held
    counts = seq_lens - prefix_lens
    taken = np.append(pool.alloc(int(need.sum())), 0).astype(np.int64)
    sequence = np.repeat(np.arange(counts.size), counts)
    behind = np.arange(sequence.size) - (np.cumsum(counts) - counts)[sequence]
    position = prefix_lens[sequence] + behind
    block = position // page_size - held[sequence]
    first = np.cumsum(need) - need
    fresh = taken[np.maximum(first[sequence] + block, 0)] * page_size + position % page_size
    return np.where(block < 0, last_slots[sequence] + 1 + behind, fresh)


def python_extend(
    pool: DictPool, page_size: int, prefix_lens: Ints, seq_lens: Ints, last_slots: Ints
) -> Ints:
    """Return what `PagePool.alloc_extend` returns, by a loop over sequences and their pages."""
    slots: list[int] = []
    lengths = zip(prefix_lens.tolist(), seq_lens.tolist(), last_slots.tolist(), strict=True)
    for prefix, length, last in lengths:
        held = -(-prefix // page_size)
        filled = min(length, held * page_size)
        slots.extend(range(last + 1, last + 1 + filled - prefix))
        for page in pool.alloc(-(-length // page_size) - held):
            count = min(length - filled, page_size)
            slots.extend(range(page * page_size, page * page_size + count))
            filled += count
    return np.array(slots, np.int64)


def numpy_decode(pool: NumpyPool, page_size: int, seq_lens: Ints, last_slots: Ints) -> Ints:
    """Return what `PagePool.alloc_decode` returns, by whole-array expressions."""
    slots = last_slots + 1
    full = (seq_lens - 1) % page_size == 0
    slots[full] = pool.alloc(int(np.count_nonzero(full))).astype(np.int64) * page_size
    return slots


def python_decode(pool: DictPool, page_size: int, seq_lens: Ints, last_slots: Ints) -> Ints:
    """Return what `PagePool.alloc_decode` returns, by a loop over sequences."""
    slots = []
    for length, last in zip(seq_lens.tolist(), last_slots.tolist(), strict=True):
        full = (length - 1) % page_size == 0
        slots.append(pool.alloc(1)[0] * page_size if full else last + 1)
    return np.array(slots, np.int64)


def numpy_block_tables(tables: jitalloc.BlockTables, rows: NDArray[np.int32]) -> Any:
    """Return what `BlockTables.block_tables` returns, by indexing (the rows are padded already)."""
    lengths = tables.arrays.columns[0, rows]
    return tables.arrays.pages[rows, : int(_pages(lengths, tables.page_size).max())]


def numpy_csr(tables: jitalloc.BlockTables, rows: NDArray[np.int32]) -> tuple[Any, Any, Any]:
    """Return what `BlockTables.page_table_csr` returns, by a mask over the padded table."""
    padded = numpy_block_tables(tables, rows)
    lengths = tables.arrays.columns[0, rows]
    indptr = np.zeros(rows.size + 1, np.int32)
    np.cumsum(_pages(lengths, tables.page_size), out=indptr[1:])
    last_page_len = (lengths - 1) % tables.page_size + 1
    return indptr, padded[padded >= 0], last_page_len.astype(np.int32)


def numpy_slots(tables: jitalloc.BlockTables, rows: NDArray[np.int32], positions: Ints) -> Ints:
    """Return what `BlockTables.slot_mapping` returns, by indexing."""
    pages = tables.arrays.pages[rows, positions // tables.page_size].astype(np.int64)
    return pages * tables.page_size + positions % tables.page_size


class BlockHashCache:
    """Pages in a dict by the hash of all tokens up to their end: a chain, block after block.

    What equal hashes stand for is never compared.
    """

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self.pages: dict[int, int] = {}
        self.users: dict[int, int] = {}

    def hashes(self, tokens: list[int]) -> Iterator[int]:
        key, size = 0, self.page_size
        for start in range(0, len(tokens) - size + 1, size):
            key = hash((key, *tokens[start : start + size]))
            yield key

    def match(self, tokens: list[int]) -> list[int]:
        found = []
        for key in self.hashes(tokens):
            page = self.pages.get(key)
            if page is None:
                break
            self.users[page] += 1
            found.append(page)
        return found

    def release(self, pages: list[int]) -> None:
        for page in pages:
            self.users[page] -= 1

    def insert(self, tokens: list[int], pages: list[int]) -> list[int]:
        canonical = []
        for key, page in zip(self.hashes(tokens), pages, strict=False):
            canonical.append(self.pages.setdefault(key, page))
            self.users.setdefault(page, 0)
        return canonical


class LeafHeap:
    """A tree whose `evict` gathers all leaves into a heap, and pops the oldest."""

    def __init__(self) -> None:
        self.parents: dict[int, int] = {}
        self.children: dict[int, int] = {}
        self.used: dict[int, int] = {}

    def insert(self, parent: int, page: int) -> None:
        """Add a page below another one (below none: -1)."""
        self.parents[page], self.children[page] = parent, 0
        self.used[page] = len(self.used)
        if parent >= 0:
            self.children[parent] += 1

    def evict(self, n: int) -> list[int]:
        leaves = [(self.used[page], page) for page, below in self.children.items() if not below]
        heapify(leaves)
        gone = []
        while leaves and len(gone) < n:
            page = heappop(leaves)[1]
            gone.append(page)
            del self.children[page]
            parent = self.parents.pop(page)
            if parent >= 0:
                self.children[parent] -= 1
                if not self.children[parent]:
                    heappush(leaves, (self.used[parent], parent))
        return gone
