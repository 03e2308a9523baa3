"""Bad input to a prefix cache on the GPU, call by call, for `test_cuda_prefix_calls.py`.

`at.prefix` and `at.timed` are those of `prefix_faults.py`, seen through a `PrefixView`; `at.cache`
is the first without one: it takes arrays of the GPU only, which `at.up` makes.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from jitalloc import PagePool, PrefixCache
from jitalloc.errors import DoubleFree, InvalidArgument, WrongDevice
from tests.cuda_prefix_pairs import PrefixView
from tests.pool_faults import Fault
from tests.prefix_faults import PREFIX_FAULTS

INT32 = np.dtype(np.int32)


def cuda_prefix_caches() -> SimpleNamespace:
    """What `prefix_caches` makes, on the GPU."""
    pool: Any = PagePool(16, 4, device="cuda", null_page=True)
    cache: Any = PrefixCache(pool, pin_budget=1)
    prefix = PrefixView(cache)
    pages = pool.alloc(7)
    pool.free(pages[6:])
    cache.insert(prefix.up(range(12)), pages[:3])
    other: Any = PagePool(4, 4, device="cuda", null_page=True)
    timed = PrefixView(PrefixCache(other, policy="priority"))  # type: ignore[arg-type]
    timed.insert(range(4), [int(each) for each in other.alloc(1)])
    match = timed.match(range(4))
    over = timed.match([])
    timed.release(over)
    return SimpleNamespace(
        pool=pool, cache=cache, prefix=prefix, timed=timed, match=match, over=over, up=prefix.up
    )


# What NumPy makes int32 of, or refuses, before the view can take it up.
CONVERTED = {
    "float tokens",
    "bool among tokens",
    "text tokens",
    "no tokens at all",
    "tokens on a GPU",
    "token past int32",
    "token past int32 kept",
    "token that wraps",
    "float pages to adopt",
    "float batch bounds",
}
LOOK_UPS = ("match", "pin")
HOST: dict[str, Any] = {
    "list": [0, 1, 2, 3],
    "array": np.arange(4, dtype=np.int32),
    "None": None,
    "number": 3,
}
TYPES = ("int64", "uint32", "float32", "bool")

CUDA_PREFIX_FAULTS: dict[str, Fault] = {
    **{name: fault for name, fault in PREFIX_FAULTS.items() if name not in CONVERTED},
    **{
        f"{name} with tokens of the host: {kind}": Fault(
            lambda at, name=name, values=values: getattr(at.cache, name)(values),  # type: ignore[misc]
            WrongDevice,
            "tokens",
            type(values).__name__,
        )
        for name in LOOK_UPS
        for kind, values in HOST.items()
    },
    **{
        f"{name} with tokens of {kind}": Fault(
            lambda at, name=name, kind=kind: getattr(at.cache, name)(  # type: ignore[misc]
                at.up(range(4), np.dtype(kind))
            ),
            InvalidArgument,
            "tokens",
            kind,
        )
        for name in LOOK_UPS
        for kind in TYPES
    },
    "insert with tokens of the host": Fault(
        lambda at: at.cache.insert(list(range(4)), at.up([4])), WrongDevice, "tokens", "list"
    ),
    "insert with pages of the host": Fault(
        lambda at: at.cache.insert(at.up(range(4)), np.array([4], INT32)),
        WrongDevice,
        "pages",
        "ndarray",
    ),
    "insert with tokens of int64": Fault(
        lambda at: at.cache.insert(at.up(range(4), np.dtype("int64")), at.up([4])),
        InvalidArgument,
        "tokens",
        "int64",
    ),
    "insert with pages of int64": Fault(
        lambda at: at.cache.insert(at.up(range(4)), at.up([4], np.dtype("int64"))),
        InvalidArgument,
        "pages",
        "int64",
    ),
    "pages in rows": Fault(
        lambda at: at.cache.insert(at.up(range(4)), at.up([[4]])), InvalidArgument, "pages", (1, 1)
    ),
    "batch with tokens of the host": Fault(
        lambda at: at.cache.match_batch([0], at.up([0, 1], np.dtype("int64"))),
        WrongDevice,
        "tokens",
        "list",
    ),
    "batch with bounds of the host": Fault(
        lambda at: at.cache.match_batch(at.up([0]), [0, 1]), WrongDevice, "indptr", "list"
    ),
    "batch with bounds of int32": Fault(
        lambda at: at.cache.match_batch(at.up([0]), at.up([0, 1])),
        InvalidArgument,
        "indptr",
        "int32",
    ),
    "batch with bounds in rows": Fault(
        lambda at: at.cache.match_batch(at.up([0]), at.up([[0, 1]], np.dtype("int64"))),
        InvalidArgument,
        "indptr",
        (1, 2),
    ),
    "no match at all": Fault(lambda at: at.cache.release(3), InvalidArgument, "match", 3),
    "a call that failed before": Fault(
        lambda at: (at.pool.free(at.up([12])), at.cache.evict(2)), DoubleFree, "pages", 12, 0
    ),
    "a call that failed before a match": Fault(
        lambda at: (at.pool.free(at.up([12])), at.cache.match(at.up(range(8)))),
        DoubleFree,
        "pages",
        12,
        0,
    ),
}
