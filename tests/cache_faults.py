"""Bad input to a `PagedKVCache`, call by call, for `test_bad_input.py`.

`at.cache` has four rows of eight pages: "a" with 6 tokens, "b" with 3, pinned, "c" with none.
`at.full` has one row, taken.
"""

from __future__ import annotations

import numpy as np

from jitalloc import BlockTables, PagedKVCache, PagePool, PageTableCSR
from jitalloc.errors import (
    DuplicateSequence,
    InvalidArgument,
    InvalidPage,
    OutOfPages,
    OutOfRows,
    PageCached,
    SequenceTooLong,
    SnapshotError,
    UnknownSequence,
    WrongDevice,
)
from tests.pool_faults import BIG, CudaArray, Fault


def save_odd_id() -> None:
    odd = PagedKVCache(PagePool(1), 1, 1)
    odd.allocate(object(), 0)
    odd.save("/nonexistent/never written")


def csr_buffers(*sizes: int) -> PageTableCSR:
    return PageTableCSR(*(np.zeros(size, np.int32) for size in sizes))


CACHE_FAULTS = {
    "no pool": Fault(lambda _at: PagedKVCache(3, 1, 1), InvalidArgument, "pool", 3),
    "no rows": Fault(lambda at: PagedKVCache(at.pool, 0, 1), InvalidArgument, "max_sequences", 0),
    "no width": Fault(
        lambda at: PagedKVCache(at.pool, 1, -1), InvalidArgument, "max_pages_per_sequence", -1
    ),
    "rows past int32": Fault(
        lambda at: PagedKVCache(at.pool, BIG, 1), InvalidArgument, "max_sequences", BIG
    ),
    "unknown policy": Fault(
        lambda at: PagedKVCache(at.pool, 1, 1, eviction="best"), InvalidArgument, "eviction", "best"
    ),
    "a threshold above 1": Fault(
        lambda at: PagedKVCache(at.pool, 1, 1, eviction_threshold=1.1),
        InvalidArgument,
        "eviction_threshold",
        1.1,
    ),
    "a threshold of text": Fault(
        lambda at: PagedKVCache(at.pool, 1, 1, eviction_threshold="x"),
        InvalidArgument,
        "eviction_threshold",
        "x",
    ),
    "no window": Fault(
        lambda at: PagedKVCache(at.pool, 1, 1, window_tokens=0),
        InvalidArgument,
        "window_tokens",
        0,
    ),
    "tables without a page size": Fault(
        lambda _at: BlockTables(1, 1, 0), InvalidArgument, "page_size", 0
    ),
    "duplicate id": Fault(lambda at: at.cache.allocate("a", 1), DuplicateSequence),
    "None as id": Fault(lambda at: at.cache.allocate(None, 1), InvalidArgument, "seq_id", None),
    "unhashable id": Fault(lambda at: at.cache.allocate([], 1), InvalidArgument, "seq_id", []),
    "unhashable unknown id": Fault(lambda at: at.cache.free([]), InvalidArgument, "seq_id", []),
    "unknown id": Fault(lambda at: at.cache.append("x"), UnknownSequence),
    "unknown source": Fault(lambda at: at.cache.fork("x", "y"), UnknownSequence),
    "fork onto itself": Fault(lambda at: at.cache.fork("a", "a"), DuplicateSequence),
    "adopt a duplicate id": Fault(lambda at: at.cache.adopt("a", [], []), DuplicateSequence),
    "adopt too few pages": Fault(
        lambda at: at.cache.adopt("x", [1] * 5, [1]), InvalidArgument, "pages", 1
    ),
    "adopt too many tokens": Fault(
        lambda at: at.cache.adopt("x", [1] * 33, range(9)), SequenceTooLong, "tokens", 33
    ),
    "adopt a page twice": Fault(
        lambda at: at.cache.adopt("x", [1] * 5, [1, 1]), PageCached, "pages", 1, 1
    ),
    "adopt a page outside": Fault(
        lambda at: at.cache.adopt("x", [1] * 5, [1, BIG]), InvalidArgument, "pages", BIG, 1
    ),
    "adopt no page": Fault(lambda at: at.cache.adopt("x", [1], [-1]), InvalidPage, "pages", -1, 0),
    "adopt float pages": Fault(
        lambda at: at.cache.adopt("x", [1], [0.5]), InvalidArgument, "pages", "float64"
    ),
    "adopt a negative token": Fault(
        lambda at: at.cache.adopt("x", [1, -2], [0]), InvalidArgument, "tokens", -2, 1
    ),
    "adopt more computed than there is": Fault(
        lambda at: at.cache.adopt("x", [1], [0], computed=2), InvalidArgument, "computed", 2
    ),
    "adopt with a float priority": Fault(
        lambda at: at.cache.adopt("x", [1], [0], priority=0.5), InvalidArgument, "priority", 0.5
    ),
    "adopt without a row": Fault(lambda at: at.full.adopt("y", [], []), OutOfRows),
    "fork behind the end": Fault(
        lambda at: at.cache.fork("a", "x", 7), InvalidArgument, "num_tokens", 7
    ),
    "fork below none": Fault(
        lambda at: at.cache.fork("a", "x", -1), InvalidArgument, "num_tokens", -1
    ),
    "fork at half a token": Fault(
        lambda at: at.cache.fork("a", "x", 0.5), InvalidArgument, "num_tokens", 0.5
    ),
    "unknown among ids": Fault(lambda at: at.cache.rows(["a", "x"]), UnknownSequence),
    "unhashable among ids": Fault(
        lambda at: at.cache.rows(["a", []]), InvalidArgument, "seq_ids", [], 1
    ),
    "one unhashable id": Fault(lambda at: at.cache.rows([{}]), InvalidArgument, "seq_ids", {}, 0),
    "rows of nothing": Fault(lambda at: at.cache.rows(5), InvalidArgument, "seq_ids", 5),
    "rows full": Fault(lambda at: at.full.allocate("y", 0), OutOfRows),
    "too long": Fault(lambda at: at.cache.allocate("x", 33), SequenceTooLong, "num_tokens", 33),
    "length past int32": Fault(
        lambda at: at.cache.allocate("x", BIG), InvalidArgument, "num_tokens", BIG
    ),
    "float length": Fault(
        lambda at: at.cache.allocate("x", 2.0), InvalidArgument, "num_tokens", 2.0
    ),
    "priority past int32": Fault(
        lambda at: at.cache.set_priority("a", BIG), InvalidArgument, "priority", BIG
    ),
    "float priority": Fault(
        lambda at: at.cache.allocate("x", 1, priority=0.5), InvalidArgument, "priority", 0.5
    ),
    "grown too long": Fault(
        lambda at: at.cache.append_batch([1, 0], [1, 30]), SequenceTooLong, "n", 30, 1
    ),
    "grown past the pool": Fault(lambda at: at.cache.append_batch([0, 1], [20, 25]), OutOfPages),
    "negative growth": Fault(lambda at: at.cache.append("a", -1), InvalidArgument, "n", -1),
    "one negative growth": Fault(
        lambda at: at.cache.append_batch([0, 1], [1, -1]), InvalidArgument, "n", -1, 1
    ),
    "float growth": Fault(lambda at: at.cache.append("a", 1.0), InvalidArgument, "n", 1.0),
    "bool growth": Fault(lambda at: at.cache.append("a", True), InvalidArgument, "n", True),
    "growths differ": Fault(lambda at: at.cache.append_batch([0, 1], [1]), InvalidArgument, "n", 1),
    "growth past int32": Fault(
        lambda at: at.cache.append_batch([0, 1], [BIG - 1, 5]), InvalidArgument, "n", 5, 1
    ),
    "row out of range": Fault(
        lambda at: at.cache.append_batch([0, 4]), InvalidArgument, "rows", 4, 1
    ),
    "row of nobody": Fault(lambda at: at.cache.free_batch([0, 3]), InvalidArgument, "rows", 3, 1),
    "row twice": Fault(lambda at: at.cache.free_batch([0, 0]), InvalidArgument, "rows", 0, 1),
    "float rows": Fault(lambda at: at.cache.free_batch([0.0]), InvalidArgument, "rows"),
    "rows on a GPU": Fault(lambda at: at.cache.free_batch(CudaArray()), WrongDevice, "rows"),
    "room for no rows": Fault(lambda at: at.cache.room_for([0, 4]), InvalidArgument, "rows", 4, 1),
    "room for a row of nobody": Fault(
        lambda at: at.cache.room_for([3]), InvalidArgument, "rows", 3, 0
    ),
    "room for a row twice": Fault(
        lambda at: at.cache.room_for([0, 0]), InvalidArgument, "rows", 0, 1
    ),
    "room for rows on a GPU": Fault(lambda at: at.cache.room_for(CudaArray()), WrongDevice, "rows"),
    "room for less than nothing": Fault(
        lambda at: at.cache.room_for([0, 1], [1, -1]), InvalidArgument, "n", -1, 1
    ),
    "room for float growth": Fault(
        lambda at: at.cache.room_for([0], 1.0), InvalidArgument, "n", 1.0
    ),
    "room past int32": Fault(
        lambda at: at.cache.room_for([0, 1], [1, BIG]), InvalidArgument, "n", BIG, 1
    ),
    "room numbers differ": Fault(
        lambda at: at.cache.room_for([0, 1], [1]), InvalidArgument, "n", 1
    ),
    "a negative reserve": Fault(
        lambda at: at.cache.room_for([0], reserve=-1), InvalidArgument, "reserve", -1
    ),
    "new tokens of a row of nobody": Fault(
        lambda at: at.cache.attention_batch([0, 3], 1), InvalidArgument, "rows", 3, 1
    ),
    "more new tokens than there are": Fault(
        lambda at: at.cache.attention_batch([0, 1], [6, 4]), InvalidArgument, "num_new", 4, 1
    ),
    "fewer new tokens than none": Fault(
        lambda at: at.cache.attention_batch([0, 1], [6, -1]), InvalidArgument, "num_new", -1, 1
    ),
    "no dtype of mapped slots": Fault(
        lambda at: at.cache.slot_mapping([0], [0], dtype=np.uint32),
        InvalidArgument,
        "dtype",
        "uint32",
    ),
    "no dtype of new slots": Fault(
        lambda at: at.cache.append_batch([0], dtype=float), InvalidArgument, "dtype", "float64"
    ),
    "no dtype of slots": Fault(
        lambda at: at.cache.attention_batch([0], 1, dtype="int16"),
        InvalidArgument,
        "dtype",
        "int16",
    ),
    "no buffers of an attention batch": Fault(
        lambda at: at.cache.attention_batch([0], 1, out=csr_buffers(1, 1, 1)),
        InvalidArgument,
        "out",
        "PageTableCSR",
    ),
    "fork lengths differ": Fault(
        lambda at: at.cache.fork_batch([0, 0], [2]), InvalidArgument, "dst_rows", 1
    ),
    "fork onto tokens": Fault(
        lambda at: at.cache.fork_batch([0, 0], [2, 1]), InvalidArgument, "dst_rows", 1, 1
    ),
    "parents differ": Fault(
        lambda at: at.cache.reorder([0, 1], [0]), InvalidArgument, "parents", 1
    ),
    "no parent": Fault(
        lambda at: at.cache.reorder([0, 1], [0, -1]), InvalidArgument, "parents", -1, 1
    ),
    "grown by truncate": Fault(
        lambda at: at.cache.truncate("a", 7), InvalidArgument, "num_tokens", 7
    ),
    "negative sink": Fault(
        lambda at: at.cache.apply_streaming_llm("a", -1, 2), InvalidArgument, "sink_tokens", -1
    ),
    "negative window": Fault(
        lambda at: at.cache.apply_window("a", -1), InvalidArgument, "window_tokens", -1
    ),
    "pinned": Fault(lambda at: at.cache.evict("b"), InvalidArgument, "seq_id", "b"),
    "no utilization": Fault(
        lambda at: at.cache.evict_to(-0.1), InvalidArgument, "utilization", -0.1
    ),
    "no number": Fault(lambda at: at.cache.evict_to("x"), InvalidArgument, "utilization", "x"),
    "not a number": Fault(
        lambda at: at.cache.evict_to(float("nan")), InvalidArgument, "utilization"
    ),
    "table too narrow": Fault(
        lambda at: at.cache.block_tables([1, 0], width=1), InvalidArgument, "width", 1
    ),
    "table of another shape": Fault(
        lambda at: at.cache.block_tables([0, 1], out=np.zeros((1, 4), np.int32)),
        InvalidArgument,
        "out",
    ),
    "table of another type": Fault(
        lambda at: at.cache.block_tables([0, 1], out=np.zeros((2, 4))), InvalidArgument, "out"
    ),
    "table strided": Fault(
        lambda at: at.cache.block_tables([0, 1], out=np.zeros((2, 8), np.int32)[:, ::2]),
        InvalidArgument,
        "out",
    ),
    "table on a GPU": Fault(
        lambda at: at.cache.block_tables([0], out=CudaArray()), WrongDevice, "out"
    ),
    "slots of another length": Fault(
        lambda at: at.cache.slot_mapping([0, 1], [0, 0], out=np.zeros(3, np.int64)),
        InvalidArgument,
        "out",
        3,
    ),
    "slots of another type": Fault(
        lambda at: at.cache.slot_mapping([0], [0], out=np.zeros(1, np.int16)),
        InvalidArgument,
        "out",
    ),
    "slots on a GPU": Fault(
        lambda at: at.cache.slot_mapping([0], [0], out=CudaArray()), WrongDevice, "out"
    ),
    "lengths of another length": Fault(
        lambda at: at.cache.seq_lens([0, 1], out=np.zeros(1, np.int32)), InvalidArgument, "out", 1
    ),
    "lengths of another type": Fault(
        lambda at: at.cache.seq_lens([0], out=np.zeros(1)), InvalidArgument, "out"
    ),
    "lengths to be read only": Fault(
        lambda at: at.cache.seq_lens([0], out=np.broadcast_to(np.int32(0), 1)),
        InvalidArgument,
        "out",
    ),
    "no buffers of CSR": Fault(
        lambda at: at.cache.page_table_csr([0], out=np.zeros(9, np.int32)),
        InvalidArgument,
        "out",
        "ndarray",
    ),
    "indptr of another length": Fault(
        lambda at: at.cache.page_table_csr([0], out=csr_buffers(1, 2, 1)),
        InvalidArgument,
        "out.indptr",
        1,
    ),
    "indices too short": Fault(
        lambda at: at.cache.page_table_csr([0, 1], out=csr_buffers(3, 2, 2)),
        InvalidArgument,
        "out.indices",
        2,
    ),
    "indices of another type": Fault(
        lambda at: at.cache.page_table_csr(
            [0], out=csr_buffers(2, 2, 1)._replace(indices=np.zeros(2))
        ),
        InvalidArgument,
        "out.indices",
    ),
    "indices on a GPU": Fault(
        lambda at: at.cache.page_table_csr(
            [0], out=csr_buffers(2, 2, 1)._replace(indices=CudaArray())
        ),
        WrongDevice,
        "out.indices",
    ),
    "last pages of another length": Fault(
        lambda at: at.cache.page_table_csr([0], out=csr_buffers(2, 2, 2)),
        InvalidArgument,
        "out.last_page_len",
        2,
    ),
    "positions differ": Fault(
        lambda at: at.cache.slot_mapping([0, 1], [0]), InvalidArgument, "positions", 1
    ),
    "position behind the end": Fault(
        lambda at: at.cache.slot_mapping([0, 1], [0, 3]), InvalidArgument, "positions", 3, 1
    ),
    "not its snapshot": Fault(
        lambda at: at.cache.restore(at.pool.snapshot()), InvalidArgument, "snapshot"
    ),
    "id that no file holds": Fault(lambda _at: save_odd_id(), SnapshotError),
}
