"""Bad input to a prefix cache of a pool on the GPU, for `test_cuda_prefix_calls.py`.

`at.prefix` and `at.timed` are those of `prefix_faults.py`: as they are, or seen through a
`PrefixView` that takes all arrays up. `at.cache` is the first without a view.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from jitalloc import PagePool, PrefixCache
from jitalloc.errors import DoubleFree, InvalidArgument
from tests.cuda_prefix_pairs import PrefixView, up
from tests.pool_faults import Fault
from tests.prefix_faults import PREFIX_FAULTS

INT32 = np.dtype(np.int32)


def cuda_prefix_caches(view: Callable[[Any], Any] = PrefixView) -> SimpleNamespace:
    """What `prefix_caches` makes, on pools of the GPU."""
    pool: Any = PagePool(16, 4, device="cuda", null_page=True)
    cache: Any = PrefixCache(pool, pin_budget=1)
    prefix = view(cache)
    pages = pool.alloc(7)
    pool.free(pages[6:])
    cache.insert(range(12), pages[:3])
    other: Any = PagePool(4, 4, device="cuda", null_page=True)
    there: Any = PrefixCache(other, policy="priority")
    timed = view(there)
    there.insert(range(4), other.alloc(1))
    match = timed.match(range(4))
    over = timed.match([])
    timed.release(over)
    caches = (cache, there)
    return SimpleNamespace(
        pool=pool, cache=cache, prefix=prefix, timed=timed, match=match, over=over, caches=caches
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
    "float pages that are bad",
    "float batch bounds",
}
LOOK_UPS = ("match", "pin")
TYPES = ("int64", "uint32", "float32", "bool")

CUDA_PREFIX_FAULTS: dict[str, Fault] = {
    **{name: fault for name, fault in PREFIX_FAULTS.items() if name not in CONVERTED},
    **{
        f"{name} with tokens of {kind}": Fault(
            lambda at, name=name, kind=kind: getattr(at.cache, name)(  # type: ignore[misc]
                up(range(4), np.dtype(kind))
            ),
            InvalidArgument,
            "tokens",
            kind,
        )
        for name in LOOK_UPS
        for kind in TYPES
    },
    "insert with tokens of int64": Fault(
        lambda at: at.cache.insert(up(range(4), np.int64), up([4])),
        InvalidArgument,
        "tokens",
        "int64",
    ),
    "insert with pages of int64": Fault(
        lambda at: at.cache.insert(up(range(4)), up([4], np.int64)),
        InvalidArgument,
        "pages",
        "int64",
    ),
    "pages in rows": Fault(
        lambda at: at.cache.insert(up(range(4)), up([[4]])), InvalidArgument, "pages", (1, 1)
    ),
    "batch with bounds of int32": Fault(
        lambda at: at.cache.match_batch(up([0]), up([0, 1])), InvalidArgument, "indptr", "int32"
    ),
    "batch with bounds in rows": Fault(
        lambda at: at.cache.match_batch(up([0]), up([[0, 1]], np.int64)),
        InvalidArgument,
        "indptr",
        (1, 2),
    ),
    "no match at all": Fault(lambda at: at.cache.release(3), InvalidArgument, "match", 3),
    "a call that failed before": Fault(
        lambda at: (at.pool.free(up([12])), at.cache.insert(up(range(12)), up([1, 2, 3]))),
        DoubleFree,
        "pages",
        12,
        0,
    ),
}
