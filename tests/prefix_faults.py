"""Bad input to a `PrefixCache`, call by call, for `test_bad_input.py`.

`at.prefix` stands on 16 pages of 4 tokens, 0 the null page, 1 to 6 the caller's, 7 released. The
tokens 0 .. 11 are cached in pages 1, 2, 3; pins may hold one page. `at.timed` has the policy
priority and holds the tokens 0 .. 3 in page 1 of a pool of its own; `at.match` locks that page.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from jitalloc import PagePool, PrefixCache
from jitalloc.errors import (
    InvalidArgument,
    InvalidPage,
    NotLocked,
    PageCached,
    PagesLocked,
    PinBudget,
    WrongDevice,
)
from tests.pool_faults import BIG, CudaArray, Fault


def prefix_caches() -> SimpleNamespace:
    """The caches that the calls below are made on."""
    pool = PagePool(16, 4, null_page=True)
    pages = pool.alloc(7)
    pool.free(pages[6:])
    prefix = PrefixCache(pool, pin_budget=1)
    prefix.insert(range(12), pages[:3])
    timed = PrefixCache(PagePool(4, 4, null_page=True), policy="priority")
    timed.insert(range(4), timed.pool.alloc(1))
    match = timed.match(range(4))
    over = timed.match([])
    timed.release(over)
    return SimpleNamespace(prefix=prefix, timed=timed, match=match, over=over)


def insert(at: Any, tokens: Any, pages: Any, *args: Any, **options: Any) -> Any:
    return at.prefix.insert(tokens, pages, *args, **options)


def batch(at: Any, *args: Any) -> Any:
    return at.prefix.match_batch(range(12), *args)


def negative(count: int, at: int, dtype: str = "int32", step: int = 1) -> np.ndarray:
    """Tokens 0, 1, ... of which one is -5."""
    tokens = np.zeros(count * step, dtype)[::step]
    tokens[:] = np.arange(count)
    tokens[at] = -5
    return tokens


PREFIX_FAULTS = {
    # A cache.
    "prefixes of no pool": Fault(lambda _at: PrefixCache(3), InvalidArgument, "pool", 3),
    "unknown policy of pages": Fault(
        lambda at: PrefixCache(at.pool, policy="best"), InvalidArgument, "policy", "best"
    ),
    "default priority past 100": Fault(
        lambda at: PrefixCache(at.pool, policy="priority", default_priority=101),
        InvalidArgument,
        "default_priority",
        101,
    ),
    "negative default priority": Fault(
        lambda at: PrefixCache(at.pool, policy="priority", default_priority=-1),
        InvalidArgument,
        "default_priority",
        -1,
    ),
    "negative pin budget": Fault(
        lambda at: PrefixCache(at.pool, pin_budget=-1), InvalidArgument, "pin_budget", -1
    ),
    "float pin budget": Fault(
        lambda at: PrefixCache(at.pool, pin_budget=0.5), InvalidArgument, "pin_budget", 0.5
    ),
    "a share above 1": Fault(
        lambda at: PrefixCache(at.pool, policy="slru", protected_share=1.5),
        InvalidArgument,
        "protected_share",
        1.5,
    ),
    # Tokens.
    "float tokens": Fault(
        lambda at: at.prefix.match([0.0, 1.0]), InvalidArgument, "tokens", "float64"
    ),
    "bool among tokens": Fault(
        lambda at: at.prefix.match([0, True]), InvalidArgument, "tokens", True, 1
    ),
    "text tokens": Fault(lambda at: at.prefix.pin("abcd"), InvalidArgument, "tokens"),
    "no tokens at all": Fault(lambda at: at.prefix.match(None), InvalidArgument, "tokens"),
    "tokens in rows": Fault(
        lambda at: at.prefix.match(np.zeros((2, 4), np.int32)), InvalidArgument, "tokens", (2, 4)
    ),
    "tokens on a GPU": Fault(lambda at: at.prefix.match(CudaArray()), WrongDevice, "tokens"),
    "token past int32": Fault(
        lambda at: at.prefix.match([0, BIG]), InvalidArgument, "tokens", BIG, 1
    ),
    "token past int32 kept": Fault(
        lambda at: insert(at, [0, 1, 2, BIG], [4]), InvalidArgument, "tokens", BIG, 3
    ),
    "token that wraps": Fault(
        lambda at: at.prefix.match(np.array([2**32], np.uint64)),
        InvalidArgument,
        "tokens",
        2**32,
        0,
    ),
    "negative token": Fault(lambda at: at.prefix.match([0, -5]), InvalidArgument, "tokens", -5, 1),
    "negative token, nothing cached": Fault(
        lambda at: at.prefix.match([0, -5], "unknown"), InvalidArgument, "tokens", -5, 1
    ),
    "negative token far behind": Fault(
        lambda at: at.prefix.match(negative(3000, 2999)), InvalidArgument, "tokens", -5, 2999
    ),
    "negative token of int64": Fault(
        lambda at: at.prefix.match(negative(30, 29, "int64")), InvalidArgument, "tokens", -5, 29
    ),
    "negative token of int8": Fault(
        lambda at: at.prefix.pin(negative(30, 3, "int8")), InvalidArgument, "tokens", -5, 3
    ),
    "negative token, strided": Fault(
        lambda at: at.prefix.match(negative(30, 2, step=2)), InvalidArgument, "tokens", -5, 2
    ),
    "negative token kept": Fault(
        lambda at: insert(at, negative(12, 9), [4, 5, 6]), InvalidArgument, "tokens", -5, 9
    ),
    "negative token not kept": Fault(
        lambda at: insert(at, negative(5, 4), [4]), InvalidArgument, "tokens", -5, 4
    ),
    # Namespaces.
    "unhashable namespace": Fault(
        lambda at: at.prefix.match([0], []), InvalidArgument, "namespace", []
    ),
    "unhashable namespace of a pin": Fault(
        lambda at: at.prefix.pin([0], {}), InvalidArgument, "namespace", {}
    ),
    "unhashable namespace to insert": Fault(
        lambda at: insert(at, [0] * 4, [4], [[]]), InvalidArgument, "namespace", [[]]
    ),
    # Pages.
    "too few pages": Fault(lambda at: insert(at, range(8), [4]), InvalidArgument, "pages", 1),
    "too many pages": Fault(lambda at: insert(at, range(7), [4, 5]), InvalidArgument, "pages", 2),
    "float pages to adopt": Fault(
        lambda at: insert(at, range(4), [1.0]), InvalidArgument, "pages", "float64"
    ),
    "page to adopt out of range": Fault(
        lambda at: insert(at, range(20), [1, 2, 3, 4, 16]), InvalidPage, "pages", 16, 4
    ),
    "negative page to adopt": Fault(
        lambda at: insert(at, range(20), [1, 2, 3, 4, -1]), InvalidPage, "pages", -1, 4
    ),
    "null page to adopt": Fault(
        lambda at: insert(at, range(16), [1, 2, 3, 0]), InvalidPage, "pages", 0, 3
    ),
    "free page to adopt": Fault(
        lambda at: insert(at, range(20), [1, 2, 3, 4, 12]), InvalidPage, "pages", 12, 4
    ),
    "released page to adopt": Fault(
        lambda at: insert(at, [9] * 8, [4, 7]), InvalidPage, "pages", 7, 1
    ),
    "cached elsewhere": Fault(lambda at: insert(at, [9] * 8, [4, 2]), PageCached, "pages", 2, 1),
    "cached before it on the path": Fault(
        lambda at: insert(at, range(16), [1, 2, 3, 2]), PageCached, "pages", 2, 3
    ),
    "adopted twice": Fault(
        lambda at: insert(at, range(24), [1, 2, 3, 4, 5, 4]), PageCached, "pages", 4, 5
    ),
    # Priorities.
    "priority of another policy": Fault(
        lambda at: insert(at, range(4), [1], priority=3), InvalidArgument, "priority", 3
    ),
    "lifetime of another policy": Fault(
        lambda at: insert(at, range(4), [1], lifetime=3), InvalidArgument, "lifetime", 3
    ),
    "priority past 100": Fault(
        lambda at: at.timed.insert(range(4), [1], priority=101), InvalidArgument, "priority", 101
    ),
    "negative priority": Fault(
        lambda at: at.timed.insert(range(4), [1], priority=-1), InvalidArgument, "priority", -1
    ),
    "float priority": Fault(
        lambda at: at.timed.insert(range(4), [1], priority=2.0), InvalidArgument, "priority", 2.0
    ),
    "negative lifetime": Fault(
        lambda at: at.timed.insert(range(4), [1], lifetime=-1), InvalidArgument, "lifetime", -1
    ),
    "float lifetime": Fault(
        lambda at: at.timed.insert(range(4), [1], lifetime=2.0), InvalidArgument, "lifetime", 2.0
    ),
    # Giving back.
    "released twice": Fault(lambda at: at.timed.release(at.over), NotLocked),
    "unpinned twice": Fault(lambda at: at.timed.unpin(at.over), NotLocked),
    "match of another cache": Fault(lambda at: at.prefix.release(at.match), NotLocked),
    "clear of what is locked": Fault(lambda at: at.timed.clear(), PagesLocked),
    "pins over budget": Fault(lambda at: at.prefix.pin(range(8)), PinBudget),
    "evict into too little": Fault(
        lambda at: at.prefix.evict(3, out=np.empty(2, np.int32)), InvalidArgument, "out", 2
    ),
    "evict into int64": Fault(
        lambda at: at.prefix.evict(1, out=np.empty(2, np.int64)), InvalidArgument, "out"
    ),
    "evict into a list": Fault(lambda at: at.prefix.evict(1, out=[0]), InvalidArgument, "out"),
    "evict into a GPU": Fault(lambda at: at.prefix.evict(1, out=CudaArray()), WrongDevice, "out"),
    # Looks, touches, and what turned out bad.
    "negative token looked up": Fault(
        lambda at: at.prefix.lookup([0, 1, 2, 3, -5]), InvalidArgument, "tokens", -5, 4
    ),
    "negative token touched": Fault(
        lambda at: at.prefix.touch(negative(30, 29)), InvalidArgument, "tokens", -5, 29
    ),
    "unhashable namespace looked up": Fault(
        lambda at: at.prefix.lookup([0], []), InvalidArgument, "namespace", []
    ),
    "unhashable namespace touched": Fault(
        lambda at: at.prefix.touch([0], []), InvalidArgument, "namespace", []
    ),
    "cap below none": Fault(
        lambda at: at.prefix.match(range(8), max_tokens=-1), InvalidArgument, "max_tokens", -1
    ),
    "half a token as cap": Fault(
        lambda at: at.prefix.match(range(8), max_tokens=0.5), InvalidArgument, "max_tokens", 0.5
    ),
    "caps of a match": Fault(
        lambda at: at.prefix.match(range(8), max_tokens=[1, 2]), InvalidArgument, "max_tokens"
    ),
    "caps that are too few": Fault(
        lambda at: at.prefix.match_batch(range(12), [0, 4, 12], max_tokens=[3]),
        InvalidArgument,
        "max_tokens",
        1,
    ),
    "a cap below none among others": Fault(
        lambda at: at.prefix.match_batch(range(12), [0, 4, 12], max_tokens=[3, -2]),
        InvalidArgument,
        "max_tokens",
        -2,
        1,
    ),
    "one cap below none for all": Fault(
        lambda at: at.prefix.match_batch(range(12), [0, 12], max_tokens=-2),
        InvalidArgument,
        "max_tokens",
        -2,
    ),
    "nothing that is bad": Fault(lambda at: at.prefix.invalidate(), InvalidArgument, "pages"),
    "bad tokens and pages": Fault(
        lambda at: at.prefix.invalidate(range(4), pages=[1]), InvalidArgument, "pages"
    ),
    "bad pages of a namespace": Fault(
        lambda at: at.prefix.invalidate(namespace="a", pages=[1]),
        InvalidArgument,
        "namespace",
        "a",
    ),
    "bad pages from somewhere on": Fault(
        lambda at: at.prefix.invalidate(start=4, pages=[1]), InvalidArgument, "start", 4
    ),
    "bad from below none on": Fault(
        lambda at: at.prefix.invalidate(range(4), start=-1), InvalidArgument, "start", -1
    ),
    "bad tokens that are none": Fault(
        lambda at: at.prefix.invalidate([0, 1, 2, 3, -5]), InvalidArgument, "tokens", -5, 4
    ),
    "bad page out of range": Fault(
        lambda at: at.prefix.invalidate(pages=[1, 16]), InvalidPage, "pages", 16, 1
    ),
    "bad page below none": Fault(
        lambda at: at.prefix.invalidate(pages=[1, -1]), InvalidPage, "pages", -1, 1
    ),
    "bad null page": Fault(lambda at: at.prefix.invalidate(pages=[0]), InvalidPage, "pages", 0, 0),
    "float pages that are bad": Fault(
        lambda at: at.prefix.invalidate(pages=[1.0]), InvalidArgument, "pages", "float64"
    ),
    "a second cache": Fault(lambda at: PrefixCache(at.prefix.pool), InvalidArgument, "pool"),
    "negative pages to evict": Fault(lambda at: at.prefix.evict(-1), InvalidArgument, "n", -1),
    "half a page to evict": Fault(lambda at: at.prefix.evict(0.5), InvalidArgument, "n", 0.5),
    # Batches.
    "no start of a batch": Fault(lambda at: batch(at, []), InvalidArgument, "indptr"),
    "batch from 1": Fault(lambda at: batch(at, [1, 12]), InvalidArgument, "indptr", 1, 0),
    "batch falls": Fault(lambda at: batch(at, [0, 8, 4, 12]), InvalidArgument, "indptr", 4, 2),
    "batch ends early": Fault(lambda at: batch(at, [0, 8]), InvalidArgument, "indptr", 8, 1),
    "batch ends late": Fault(lambda at: batch(at, [0, 13]), InvalidArgument, "indptr", 13, 1),
    "float batch bounds": Fault(lambda at: batch(at, [0.0, 12.0]), InvalidArgument, "indptr"),
    "namespaces differ": Fault(
        lambda at: batch(at, [0, 4, 12], ["a"]), InvalidArgument, "namespaces", 1
    ),
    "unhashable among namespaces": Fault(
        lambda at: batch(at, [0, 4, 12], ["a", []]), InvalidArgument, "namespaces", [], 1
    ),
    "negative token in a batch": Fault(
        lambda at: at.prefix.match_batch(negative(12, 9), [0, 4, 12]),
        InvalidArgument,
        "tokens",
        -5,
        9,
    ),
}
