"""Bad input to a `PagePool`, call by call, for `test_bad_input.py`.

`at.pool` has 16 pages of 4 tokens: 0 to 3 are the caller's (3 twice), 4 is released, 5 to 7 are
the sequences'. `at.fifo` has 8 pages, 0 its null page, 1 to 3 the caller's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np

from jitalloc import PagePool
from jitalloc.errors import (
    CorruptState,
    DoubleFree,
    InvalidArgument,
    InvalidPage,
    NestedFreeGroup,
    OutOfPages,
    PageInUse,
    WrongDevice,
)

ANY = object()
BIG = 2**31


class CudaArray:
    """Looks like an array of CuPy's, as far as a check of device, type and shape goes."""

    __cuda_array_interface__: ClassVar[dict[str, Any]] = {}
    dtype = np.dtype(np.int32)
    ndim = 1
    shape = (1,)
    size = 1


class Fault(NamedTuple):
    """A call that must be refused, and what the error says."""

    call: Callable[[Any], Any]
    error: type[Exception]
    argument: str | None = None
    value: Any = ANY
    position: int | None = None


def read_only(dtype: type) -> np.ndarray:
    array = np.zeros(2, dtype)
    array.flags.writeable = False
    return array


def nest_groups(pool: PagePool) -> None:
    with pool.free_group(), pool.free_group():
        pass


POOL_FAULTS = {
    # Counts.
    "unknown device": Fault(lambda at: PagePool(8, device="gpu"), WrongDevice, "device", "gpu"),
    "runs": Fault(lambda at: at.pool.stats(runs=1), InvalidArgument, "runs", 1),
    "negative": Fault(lambda at: at.pool.alloc(-1), InvalidArgument, "n", -1),
    "past int32": Fault(lambda at: at.pool.alloc(BIG), InvalidArgument, "n", BIG),
    "float count": Fault(lambda at: at.pool.alloc(1.0), InvalidArgument, "n", 1.0),
    "bool count": Fault(lambda at: at.pool.try_alloc(True), InvalidArgument, "n", True),
    "numpy bool": Fault(lambda at: at.pool.alloc(np.True_), InvalidArgument, "n"),
    "text count": Fault(lambda at: at.pool.alloc("3"), InvalidArgument, "n", "3"),
    "no count": Fault(lambda at: at.pool.alloc(None), InvalidArgument, "n", None),
    "oversized": Fault(lambda at: at.pool.alloc(17), OutOfPages),
    "short": Fault(lambda at: at.pool.alloc(12), OutOfPages),
    "no run": Fault(lambda at: at.pool.alloc(9, contiguous=True), OutOfPages),
    "run in fifo": Fault(
        lambda at: at.fifo.alloc(2, contiguous=True), InvalidArgument, "contiguous", True
    ),
    "negative in a batch": Fault(
        lambda at: at.pool.alloc_batch([1, -2]), InvalidArgument, "counts", -2, 1
    ),
    "batch past int32": Fault(
        lambda at: at.pool.alloc_batch([1, 2**62, 2**62]), InvalidArgument, "counts", 2**62, 1
    ),
    "batch sum past int32": Fault(
        lambda at: at.pool.alloc_batch([BIG - 1, 1]), InvalidArgument, "counts", 1, 1
    ),
    "batch too large": Fault(lambda at: at.pool.alloc_batch([6, 6]), OutOfPages),
    "negative to admit": Fault(
        lambda at: at.pool.admit([99, -1]), InvalidArgument, "counts", -1, 1
    ),
    "float batch": Fault(lambda at: at.pool.alloc_batch([1.0]), InvalidArgument, "counts"),
    "scalar batch": Fault(lambda at: at.pool.alloc_batch(3), InvalidArgument, "counts"),
    # Ids.
    "float ids": Fault(lambda at: at.pool.free([1.0]), InvalidArgument, "pages", "float64"),
    "bool ids": Fault(lambda at: at.pool.free([True]), InvalidArgument, "pages", True, 0),
    "array of bools": Fault(
        lambda at: at.pool.free(np.array([True])), InvalidArgument, "pages", "bool"
    ),
    "bool among ids": Fault(lambda at: at.pool.free([0, True]), InvalidArgument, "pages", True, 1),
    "text ids": Fault(lambda at: at.pool.free(["a"]), InvalidArgument, "pages"),
    "object ids": Fault(lambda at: at.pool.share([None]), InvalidArgument, "pages"),
    "no ids": Fault(lambda at: at.pool.free(None), InvalidArgument, "pages"),
    "one id": Fault(lambda at: at.pool.free(1), InvalidArgument, "pages"),
    "ragged ids": Fault(lambda at: at.pool.free([[1], [1, 2]]), InvalidArgument, "pages"),
    "two dimensions": Fault(
        lambda at: at.pool.free(np.zeros((2, 1), np.int32)), InvalidArgument, "pages", (2, 1)
    ),
    "unsigned overflow": Fault(
        lambda at: at.pool.free(np.array([1, 2**32 + 1], np.uint64)),
        InvalidArgument,
        "pages",
        2**32 + 1,
        1,
    ),
    "wrapping id": Fault(
        lambda at: at.pool.share([1, -(2**32)]), InvalidArgument, "pages", -(2**32), 1
    ),
    "huge id": Fault(lambda at: at.pool.free([2**70]), InvalidArgument, "pages"),
    "id out of range": Fault(lambda at: at.pool.free([1, 16]), InvalidPage, "pages", 16, 1),
    "negative id": Fault(lambda at: at.pool.share([1, -1]), InvalidPage, "pages", -1, 1),
    "count of no page": Fault(lambda at: at.pool.refcount([0, 16]), InvalidPage, "pages", 16, 1),
    "reserved": Fault(lambda at: at.fifo.free([1, 0]), InvalidPage, "pages", 0, 1),
    "reserved shared": Fault(lambda at: at.fifo.share([1, 0]), InvalidPage, "pages", 0, 1),
    "free page shared": Fault(lambda at: at.pool.share([1, 15]), InvalidPage, "pages", 15, 1),
    "free already": Fault(lambda at: at.pool.free([1, 15]), DoubleFree, "pages", 15, 1),
    "released already": Fault(lambda at: at.pool.free([1, 4]), DoubleFree, "pages", 4, 1),
    "repeated": Fault(lambda at: at.pool.free([1, 2, 1]), DoubleFree, "pages", 1, 2),
    "one too often": Fault(lambda at: at.pool.free([3, 3, 3]), DoubleFree, "pages", 3, 2),
    # Buffers.
    "out too small": Fault(
        lambda at: at.pool.alloc(2, out=np.zeros(1, np.int32)), InvalidArgument, "out", 1
    ),
    "out of another type": Fault(
        lambda at: at.pool.alloc(2, out=np.zeros(2, np.int64)), InvalidArgument, "out"
    ),
    "out strided": Fault(
        lambda at: at.pool.alloc(2, out=np.zeros(4, np.int32)[::2]), InvalidArgument, "out"
    ),
    "out read-only": Fault(
        lambda at: at.pool.alloc(2, out=read_only(np.int32)), InvalidArgument, "out"
    ),
    "out of two dimensions": Fault(
        lambda at: at.pool.alloc(2, out=np.zeros((1, 2), np.int32)), InvalidArgument, "out"
    ),
    "out a list": Fault(lambda at: at.pool.alloc(2, out=[0, 0]), InvalidArgument, "out"),
    "out for decode": Fault(
        lambda at: at.pool.alloc_decode([1], [-1], out=np.zeros(1, np.int32)),
        InvalidArgument,
        "out",
    ),
    "out for extend": Fault(
        lambda at: at.pool.alloc_extend([0], [3], [-1], out=np.zeros(4, np.int64)),
        InvalidArgument,
        "out",
        4,
    ),
    # Devices.
    "pages on a GPU": Fault(lambda at: at.pool.free(CudaArray()), WrongDevice, "pages"),
    "shared on a GPU": Fault(lambda at: at.pool.share(CudaArray()), WrongDevice, "pages"),
    "lengths on a GPU": Fault(
        lambda at: at.pool.alloc_decode(CudaArray(), [-1]), WrongDevice, "seq_lens"
    ),
    "out on a GPU": Fault(lambda at: at.pool.alloc(1, out=CudaArray()), WrongDevice, "out"),
    "a pool on a GPU": Fault(lambda _at: PagePool(4, device="cuda"), WrongDevice, "device", "cuda"),
    # Tokens.
    "lengths differ": Fault(
        lambda at: at.pool.alloc_extend([0, 0], [1], [-1, -1]), InvalidArgument, "seq_lens", 1
    ),
    "slots differ": Fault(
        lambda at: at.pool.alloc_decode([1], [-1, -1]), InvalidArgument, "last_slots", 2
    ),
    "below its prefix": Fault(
        lambda at: at.pool.alloc_extend([0, 2], [1, 1], [-1, 1]), InvalidArgument, "seq_lens", 1, 1
    ),
    "misaligned": Fault(
        lambda at: at.pool.alloc_decode([1, 3], [-1, 6]), InvalidArgument, "last_slots", 6, 1
    ),
    "slot of nobody": Fault(
        lambda at: at.pool.alloc_decode([1, 3], [-1, 61]), InvalidArgument, "last_slots", 61, 1
    ),
    "float lengths": Fault(
        lambda at: at.pool.alloc_decode([1.5], [-1]), InvalidArgument, "seq_lens"
    ),
    "slot outside": Fault(lambda at: at.pool.free_slots([4, 64]), InvalidArgument, "slots", 64, 1),
    "slot of a free page": Fault(
        lambda at: at.pool.free_slots([4, 60]), InvalidArgument, "slots", 60, 1
    ),
    # The pool as a whole.
    "no pages": Fault(lambda _at: PagePool(0), InvalidArgument, "num_pages", 0),
    "the null page alone": Fault(
        lambda _at: PagePool(1, null_page=True), InvalidArgument, "num_pages", 1
    ),
    "pages past int32": Fault(lambda _at: PagePool(BIG), InvalidArgument, "num_pages", BIG),
    "float pages": Fault(lambda _at: PagePool(4.0), InvalidArgument, "num_pages", 4.0),
    "no page size": Fault(lambda _at: PagePool(4, 0), InvalidArgument, "page_size", 0),
    "negative page size": Fault(lambda _at: PagePool(4, -4), InvalidArgument, "page_size", -4),
    "unknown order": Fault(lambda _at: PagePool(4, order="best"), InvalidArgument, "order", "best"),
    "order of arrays": Fault(
        lambda _at: PagePool(4, order=np.array(["fifo", "lifo"])), InvalidArgument, "order"
    ),
    "null page by number": Fault(
        lambda _at: PagePool(4, null_page=1), InvalidArgument, "null_page", 1
    ),
    "shrunk too far": Fault(lambda at: at.pool.resize(5), PageInUse, "num_pages", 5),
    "resized to nothing": Fault(lambda at: at.pool.resize(0), InvalidArgument, "num_pages", 0),
    "resized past int32": Fault(lambda at: at.pool.resize(BIG), InvalidArgument, "num_pages", BIG),
    "cleared under sequences": Fault(lambda at: at.pool.clear(), InvalidArgument, "clear", 3),
    "no snapshot": Fault(lambda at: at.pool.restore({}), InvalidArgument, "snapshot"),
    "nested groups": Fault(lambda at: nest_groups(at.pool), NestedFreeGroup),
    "held out of range": Fault(lambda at: at.pool.check(held=[16]), InvalidPage, "pages", 16, 0),
    "held twice": Fault(lambda at: at.pool.check(held=[3, 3, 3]), CorruptState),
}
