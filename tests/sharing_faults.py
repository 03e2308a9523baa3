"""Bad input to a `PagedKVCache` with a prefix cache, call by call, for `test_bad_input.py`.

`at.shared` has four rows of eight pages on 12 pages of 4 tokens; "a" has the tokens 0 .. 9, the
first two pages cached and locked; "b" has 6 tokens that nobody told. The tokens 50 .. 57 are
cached in two pages that nobody locks, the user holds three pages, and two are free.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from jitalloc import PagedKVCache, PagePool, PrefixCache
from jitalloc.errors import (
    DuplicateSequence,
    InvalidArgument,
    OutOfPages,
    OutOfRows,
    SequenceTooLong,
    UnknownSequence,
    WrongDevice,
)
from tests.pool_faults import BIG, CudaArray, Fault
from tests.prefix_faults import negative


def sharing_cache() -> SimpleNamespace:
    """The cache that the calls below are made on."""
    pool = PagePool(12, 4)
    prefix = PrefixCache(pool)
    cache = PagedKVCache(pool, 4, 8, prefix_cache=prefix)
    cache.allocate("gone", tokens=range(50, 58))
    cache.commit("gone")
    cache.free("gone")
    cache.allocate("a", tokens=range(10))
    cache.commit("a")
    cache.allocate("b", 6)
    pool.alloc(3)
    return SimpleNamespace(shared=cache, elsewhere=PrefixCache(PagePool(12, 4)))


def allocate(at: Any, tokens: Any, *args: Any, **options: Any) -> Any:
    return at.shared.allocate("x", *args, tokens=tokens, **options)


def begin(at: Any, lengths: Any, ids: Any, **options: Any) -> Any:
    indptr = np.cumsum([0, *lengths])
    return at.shared.allocate_batch(range(indptr[-1]), indptr, ids=ids, **options)


def append(at: Any, tokens: Any, *args: Any, rows: Any = (0, 1)) -> Any:
    return at.shared.append_batch(rows, *args, tokens=tokens)


def commit(at: Any, seq_id: Any, tokens: Any = None, **options: Any) -> Any:
    return at.shared.commit(seq_id, tokens=tokens, **options)


def refused(call: Any, argument: str, *facts: Any) -> Fault:
    return Fault(call, InvalidArgument, argument, *facts)


SHARING_FAULTS = {
    # The cache itself.
    "sequences on no prefix cache": refused(
        lambda at: PagedKVCache(at.pool, 1, 1, prefix_cache=3), "prefix_cache", 3
    ),
    "sequences on slot prefixes": refused(
        lambda at: PagedKVCache(at.pool, 1, 1, prefix_cache=at.prefixes), "prefix_cache"
    ),
    "sequences on a class": refused(
        lambda at: PagedKVCache(at.pool, 1, 1, prefix_cache=PrefixCache), "prefix_cache"
    ),
    "prefix cache of another pool": refused(
        lambda at: PagedKVCache(at.pool, 1, 1, prefix_cache=at.elsewhere), "prefix_cache"
    ),
    # Prompts that come together.
    "a plan of a negative token": refused(
        lambda at: at.shared.plan([1, -2], [0, 2]), "tokens", -2, 1
    ),
    "a plan that begins late": refused(lambda at: at.shared.plan(range(4), [1, 4]), "indptr", 1, 0),
    "a plan whose bounds fall": refused(
        lambda at: at.shared.plan(range(4), [0, 4, 3, 4]), "indptr", 3, 2
    ),
    "a plan that ends early": refused(lambda at: at.shared.plan(range(4), [0, 3]), "indptr", 3, 1),
    "a plan of no bounds": refused(lambda at: at.shared.plan([], []), "indptr", 0),
    "a plan of float bounds": refused(lambda at: at.shared.plan([], [0.0]), "indptr"),
    "a plan of few namespaces": refused(
        lambda at: at.shared.plan(range(4), [0, 2, 4], namespaces=["x"]), "namespaces", 1
    ),
    "a plan of no namespaces": refused(
        lambda at: at.shared.plan(range(4), [0, 2, 4], namespaces=5), "namespaces", 5
    ),
    "a plan of a namespace that is a list": refused(
        lambda at: at.cache.plan(range(4), [0, 2, 4], namespaces=["x", []]), "namespaces", [], 1
    ),
    "a plan of tokens on a GPU": Fault(
        lambda at: at.shared.plan(CudaArray(), [0, 1]), WrongDevice, "tokens"
    ),
    "a plan with a negative reserve": refused(
        lambda at: at.shared.plan([1], [0, 1], reserve=-1), "reserve", -1
    ),
    "a plan with a negative compute": refused(
        lambda at: at.shared.plan([1], [0, 1], compute=-1), "compute", -1
    ),
    "a batch with float compute": refused(
        lambda at: begin(at, [1], ["x"], compute=1.0), "compute", 1.0
    ),
    "a batch with bool priority": refused(
        lambda at: begin(at, [1], ["x"], priority=True), "priority", True
    ),
    "a batch with one id too few": refused(lambda at: begin(at, [2, 2], ["x"]), "ids", 1),
    "a batch whose ids are a text": refused(lambda at: begin(at, [2, 2], "xy"), "ids", "xy"),
    "a batch whose ids are none": refused(lambda at: begin(at, [2], 7), "ids", 7),
    "a batch with an id that is a list": refused(
        lambda at: begin(at, [2, 2], ["x", []]), "ids", [], 1
    ),
    "a batch with None among its ids": refused(
        lambda at: begin(at, [2, 2], ["x", None]), "ids", None, 1
    ),
    "a batch with an id twice": Fault(lambda at: begin(at, [2, 2], ["x", "x"]), DuplicateSequence),
    "a batch with an id that lives": Fault(
        lambda at: begin(at, [2, 2], ["x", "a"]), DuplicateSequence
    ),
    "a batch with a namespace too many": refused(
        lambda at: begin(at, [2], ["x"], namespaces=[1, 2]), "namespaces", 2
    ),
    "a batch with a negative token": refused(
        lambda at: at.shared.allocate_batch([1, -1], [0, 2], ids=["x"]), "tokens", -1, 1
    ),
    "a batch with a prompt that is too long": Fault(
        lambda at: begin(at, [4, 33], ["x", "y"]), SequenceTooLong, "tokens", 33, 1
    ),
    "a batch of more than there are rows": Fault(
        lambda at: begin(at, [1, 1, 1], ["x", "y", "z"]), OutOfRows
    ),
    "a batch of more than there are pages": Fault(
        lambda at: begin(at, [8, 16], ["x", "y"]), OutOfPages
    ),
    # allocate.
    "a compute below nothing": refused(lambda at: allocate(at, [1], compute=-1), "compute", -1),
    "neither length nor tokens": refused(lambda at: at.shared.allocate("x"), "num_tokens", None),
    "neither, and nothing cached": refused(lambda at: at.cache.allocate("x"), "num_tokens", None),
    "tokens and another length": refused(lambda at: allocate(at, range(8), 9), "num_tokens", 9),
    "tokens and no number": refused(lambda at: allocate(at, [1], 1.0), "num_tokens", 1.0),
    "tokens and a bool": refused(lambda at: allocate(at, [1], True), "num_tokens", True),
    "other length, nothing cached": refused(
        lambda at: at.cache.allocate("x", 2, tokens=[1]), "num_tokens", 2
    ),
    "negative token to begin with": refused(lambda at: allocate(at, [0, 1, -5]), "tokens", -5, 2),
    "negative token behind cached ones": refused(
        lambda at: allocate(at, negative(11, 9)), "tokens", -5, 9
    ),
    "negative token in a cached page": refused(
        lambda at: allocate(at, negative(8, 5)), "tokens", -5, 5
    ),
    "negative token, evictions needed": refused(
        lambda at: allocate(at, negative(16, 15)), "tokens", -5, 15
    ),
    "negative token, nothing shared": refused(
        lambda at: at.cache.allocate("x", tokens=[1, -5]), "tokens", -5, 1
    ),
    "float tokens to begin with": refused(lambda at: allocate(at, [0.0, 1.0]), "tokens", "float64"),
    "bool among tokens to begin with": refused(
        lambda at: allocate(at, [0, True]), "tokens", True, 1
    ),
    "tokens to begin with in rows": refused(
        lambda at: allocate(at, np.zeros((2, 4), np.int32)), "tokens", (2, 4)
    ),
    "one token, no array": refused(lambda at: allocate(at, 5), "tokens", 5),
    "a bool in a batch of one": refused(lambda at: allocate(at, [[1, True]]), "tokens", True, 1),
    "a batch of two prompts": refused(lambda at: allocate(at, [[1], [2]]), "tokens", (2, 1)),
    "text to begin with": refused(lambda at: allocate(at, "abcd"), "tokens"),
    "tokens to begin with past int32": refused(lambda at: allocate(at, [1, BIG]), "tokens", BIG, 1),
    "tokens to begin with on a GPU": Fault(
        lambda at: allocate(at, CudaArray()), WrongDevice, "tokens"
    ),
    "more tokens than a row has": Fault(
        lambda at: allocate(at, range(33)), SequenceTooLong, "num_tokens", 33
    ),
    "unhashable namespace to begin in": refused(
        lambda at: allocate(at, [1], namespace=[]), "namespace", []
    ),
    "unhashable namespace, no tokens": refused(
        lambda at: at.shared.allocate("x", 1, namespace={}), "namespace", {}
    ),
    "unhashable namespace, nothing cached": refused(
        lambda at: at.cache.allocate("x", 1, namespace=[]), "namespace", []
    ),
    "more than can be reclaimed": Fault(lambda at: at.shared.allocate("x", 17), OutOfPages),
    "more than can be reclaimed, told": Fault(lambda at: allocate(at, [9] * 17), OutOfPages),
    "more than can be reclaimed, shared": Fault(
        lambda at: allocate(at, [*range(8), *[9] * 17]), OutOfPages
    ),
    "what is shared cannot be reclaimed": Fault(
        lambda at: allocate(at, [*range(50, 58), *[9] * 9]), OutOfPages
    ),
    # append.
    "too few tokens": refused(lambda at: append(at, [1], 1), "tokens", 1),
    "too many tokens": refused(lambda at: append(at, [1, 2, 3], [1, 1]), "tokens", 3),
    "tokens for nobody": refused(lambda at: append(at, [1], rows=[]), "tokens", 1),
    "no tokens for two": refused(lambda at: append(at, []), "tokens", 0),
    "tokens of one sequence and a number": refused(
        lambda at: at.shared.append("a", 2, tokens=[1]), "tokens", 1
    ),
    "negative token to append": refused(lambda at: append(at, [1, -5]), "tokens", -5, 1),
    "negative token to append, evictions needed": refused(
        lambda at: append(at, [*[1] * 11, -5], 6), "tokens", -5, 11
    ),
    "float tokens to append": refused(lambda at: append(at, [1.0, 2.0]), "tokens", "float64"),
    "tokens to append in rows": refused(
        lambda at: append(at, np.zeros((2, 1), np.int32)), "tokens", (2, 1)
    ),
    "tokens to append past int32": refused(lambda at: append(at, [BIG, 1]), "tokens", BIG, 0),
    "tokens to append on a GPU": Fault(lambda at: append(at, CudaArray()), WrongDevice, "tokens"),
    "negative token, nothing cached to append": refused(
        lambda at: at.cache.append("a", tokens=[-5]), "tokens", -5, 0
    ),
    "room below none": refused(lambda at: at.shared.make_room(-1), "num_pages", -1),
    "half a page of room": refused(lambda at: at.shared.make_room(0.5), "num_pages", 0.5),
    "room past what can be reclaimed": Fault(lambda at: at.shared.make_room(10**6), OutOfPages),
    "appended past what can be reclaimed": Fault(
        lambda at: at.shared.append_batch([0, 1], [11, 11]), OutOfPages
    ),
    "appended tokens past what can be reclaimed": Fault(
        lambda at: append(at, [1] * 22, 11), OutOfPages
    ),
    "tokens past the width": Fault(
        lambda at: append(at, [1] * 24, [1, 23], rows=[1, 0]), SequenceTooLong, "n", 23, 1
    ),
    "tokens for a row of nobody": refused(lambda at: append(at, [1, 2], rows=[0, 3]), "rows", 3, 1),
    # commit.
    "more computed than there is": refused(
        lambda at: commit(at, "a", num_tokens=11), "num_tokens", 11
    ),
    "more computed than there is, nothing cached": refused(
        lambda at: at.cache.commit("a", 99), "num_tokens", 99
    ),
    "computed below none": refused(lambda at: commit(at, "a", num_tokens=-1), "num_tokens", -1),
    "half a token computed": refused(lambda at: commit(at, "a", num_tokens=0.5), "num_tokens", 0.5),
    "computed or not": refused(lambda at: commit(at, "a", num_tokens=True), "num_tokens", True),
    "tokens in place of a number": refused(
        lambda at: commit(at, "a", num_tokens=[1]), "num_tokens"
    ),
    "more computed of a row than it has": refused(
        lambda at: at.shared.commit_batch([1, 0], [6, 11]), "num_tokens", 11, 1
    ),
    "more computed of rows than one has": refused(
        lambda at: at.shared.commit_batch([0, 1], 7), "num_tokens", 7, 1
    ),
    "rows computed below none": refused(
        lambda at: at.shared.commit_batch([0, 1], [0, -1]), "num_tokens", -1, 1
    ),
    "all rows computed below none": refused(
        lambda at: at.shared.commit_batch([0], -1), "num_tokens", -1
    ),
    "one number too few of rows computed": refused(
        lambda at: at.shared.commit_batch([0, 1], [1]), "num_tokens", 1
    ),
    "rows computed by a float": refused(
        lambda at: at.shared.commit_batch([0, 1], [1.0, 1.0]), "num_tokens"
    ),
    "committed row of nobody": refused(lambda at: at.shared.commit_batch([0, 3]), "rows", 3, 1),
    "row committed twice": refused(lambda at: at.shared.commit_batch([1, 1]), "rows", 1, 1),
    "append and computed by a number": refused(
        lambda at: at.shared.append("a", computed=1), "computed", 1
    ),
    "append rows and computed by None": refused(
        lambda at: at.cache.append_batch([0], computed=None), "computed", None
    ),
    "negative token to commit, nothing cached": refused(
        lambda at: at.cache.commit("a", tokens=[-5]), "tokens", -5, 0
    ),
    "commit of nobody": Fault(lambda at: commit(at, "x"), UnknownSequence),
    "commit of what is no id": refused(lambda at: commit(at, []), "seq_id", []),
    "more tokens than there are": refused(lambda at: commit(at, "a", range(11)), "tokens", 11),
    "more tokens than b has": refused(lambda at: commit(at, "b", [7] * 7), "tokens", 7),
    "another token in a cached page": refused(
        lambda at: commit(at, "a", [0, 1, 2, 9, 4]), "tokens", 9, 3
    ),
    "another token that is known": refused(
        lambda at: commit(at, "a", [*range(9), 0]), "tokens", 0, 9
    ),
    "negative token to commit": refused(lambda at: commit(at, "b", [7, -5]), "tokens", -5, 1),
    "float tokens to commit": refused(lambda at: commit(at, "b", [0.5]), "tokens", "float64"),
    "tokens to commit in rows": refused(
        lambda at: commit(at, "b", np.zeros((2, 2), np.int32)), "tokens", (2, 2)
    ),
    "tokens to commit on a GPU": Fault(
        lambda at: commit(at, "b", CudaArray()), WrongDevice, "tokens"
    ),
    # free.
    "free with a number": refused(lambda at: at.shared.free("a", commit=1), "commit", 1),
    "free with None": refused(lambda at: at.shared.free("a", commit=None), "commit", None),
    "free rows with a number": refused(lambda at: at.shared.free_batch([0], commit=0), "commit", 0),
    "free rows of nobody": refused(lambda at: at.shared.free_batch([0, 3]), "rows", 3, 1),
    "free a row twice": refused(lambda at: at.shared.free_batch([0, 0]), "rows", 0, 1),
    # Upkeep.
    "restored under sequences": refused(
        lambda at: at.shared.prefix_cache.restore(at.shared.prefix_cache.snapshot()), "snapshot"
    ),
    "pool restored under sequences": refused(
        lambda at: at.shared.pool.restore(at.shared.pool.snapshot()), "restore"
    ),
    "restored without a prefix cache": refused(
        lambda at: PagedKVCache(PagePool(12, 4), 4, 8).restore(at.shared.snapshot()), "snapshot"
    ),
    "restored with a prefix cache of another policy": refused(
        lambda at: with_policy("lfu").restore(at.shared.snapshot()), "snapshot"
    ),
    "restored from one without": refused(
        lambda at: at.shared.restore(PagedKVCache(PagePool(12, 4), 4, 8).snapshot()), "snapshot"
    ),
}


def with_policy(policy: str) -> PagedKVCache:
    pool = PagePool(12, 4)
    return PagedKVCache(pool, 4, 8, prefix_cache=PrefixCache(pool, policy=policy))
