"""The prefix cache of a pool on the GPU as its callers see it: arrays, launches, waits, errors.

NUMBA_ENABLE_CUDASIM=1 NUMBA_DISABLE_JIT=1 pytest tests/test_cuda_prefix_calls.py
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jitalloc import (
    NULL,
    CorruptState,
    DoubleFree,
    InvalidArgument,
    OutOfPages,
    PagePool,
    PrefixBatch,
    PrefixCache,
    PrefixMatch,
    WrongDevice,
    errors,
)
from jitalloc.cuda import CudaPrefixCache
from jitalloc.pool.state import STEP
from tests.cuda_pairs import HostView
from tests.cuda_prefix_faults import CUDA_PREFIX_FAULTS, cuda_prefix_caches
from tests.cuda_prefix_pairs import state, stored, up
from tests.gpu import ON_DEVICE, recorded
from tests.pool_faults import ANY, Fault
from tests.prefix_faults import PREFIX_FAULTS
from tests.prefix_pairs import spell
from tests.recording import RecordingDevice

pytestmark = ON_DEVICE


# The class, and what comes back.


def test_the_device_of_the_pool_chooses_the_class() -> None:
    cache = stored()
    assert type(cache) is CudaPrefixCache
    assert isinstance(cache, PrefixCache)
    assert (cache.device, PrefixCache(PagePool(4)).device) == ("cuda", "cpu")
    with pytest.raises(WrongDevice, match="'cuda'"):
        CudaPrefixCache(PagePool(4))
    with pytest.raises(InvalidArgument):
        CudaPrefixCache(4)  # type: ignore[arg-type]
    assert repr(cache).startswith("CudaPrefixCache(policy='lru'): 0 pages cached, 0 locked")
    assert cache.nbytes_per_page > 0


@pytest.mark.parametrize("take", [up, np.array, list], ids=["gpu", "numpy", "list"])
def test_what_comes_back_is_known_on_the_host(take: Callable[..., Any]) -> None:
    cache = stored(16, 4, "abc")
    match = cache.match(take(spell("abx", 4)))
    assert (type(match), type(match.pages), match.pages.dtype) == (
        PrefixMatch,
        np.ndarray,
        np.int32,
    )
    assert [type(each) for each in (match.num_tokens, match.partial_page)] == [int, int]
    assert repr(match) == "PrefixMatch(num_tokens=8, pages=[0 1]): locked"
    bounds = up([0, 8, 8, 16], np.int64) if take is up else [0, 8, 8, 16]
    batch = cache.match_batch(take(spell("abca", 4)), bounds)
    assert type(batch) is PrefixBatch
    assert (batch.num_tokens.tolist(), batch.pages.tolist()) == ([8, 0, 0], [0, 1])
    result = cache.insert(take(spell("ab", 4)), match.pages)
    assert (type(result.pages), result.num_present) == (np.ndarray, 2)
    pages = cache.pool.alloc(1)
    result = cache.insert(take(spell("abcd", 4)), take([0, 1, 2, int(pages[0])]))
    assert (result.pages.tolist(), result.num_new) == ([0, 1, 2, 3], 1)
    assert cache.pool.refcount(up([0, 3])).tolist() == [1, 2]
    cache.release(batch)
    cache.release(match)
    cache.check()


def test_arrays_that_are_not_contiguous_are_read() -> None:
    cache = stored(16, 4, "abc")
    tokens = up(np.repeat(spell("abc", 4), 2))[::2]
    with cache.match(tokens) as match, cache.pin(tokens) as pinned:
        assert match.pages.tolist() == pinned.pages.tolist() == [0, 1, 2]
    assert (cache.num_locked, cache.num_pinned) == (0, 0)
    more, pages = up(np.repeat(spell("abcd", 4), 2))[::2], up([0, 9, 1, 9, 2, 9, 3, 9])[::2]
    cache.pool.alloc(1)
    assert cache.insert(more, pages).num_new == 1
    cache.check()


@pytest.mark.parametrize("take", [up, list], ids=["gpu", "host"])
def test_empty_calls(take: Callable[..., Any]) -> None:
    cache, none = stored(4), take([])
    for call in (cache.match, cache.pin):
        with call(none) as match:
            assert (match.num_pages, match.pages.size) == (0, 0)
    with cache.match_batch(none, [0]) as batch:
        assert (batch.num_tokens.size, batch.indptr.tolist(), batch.pages.size) == (0, [0], 0)
    assert cache.insert(none, none)[1:] == (0, 0)
    assert (cache.evict(0), cache.evict(5), len(cache)) == (0, 0, 0)
    cache.check()


# What is launched, and what waits.


class Call(SimpleNamespace):
    """A call, the kernels that it starts, and how often it copies down and up."""

    run: Callable[[Any, Any], Any]
    starts: tuple[str, ...] = ()
    down = 0
    up = 0


ADOPTION = ("prefix_fetch_cuda", "prefix_insert_cuda")
CALLS: dict[str, Call] = {
    "match": Call(run=lambda c, at: c.match(at.tokens)),
    "match of tokens on the GPU": Call(run=lambda c, at: c.match(at.there), down=1),
    "match_batch": Call(run=lambda c, at: c.match_batch(at.tokens, [0, 8, 16])),
    "pin": Call(run=lambda c, at: c.unpin(c.pin(at.tokens))),
    "release": Call(run=lambda c, at: c.release(at.match)),
    "look": Call(run=lambda c, at: (c.stats(), c.num_cached, c.num_locked, c.num_pinned, len(c))),
    "insert": Call(run=lambda c, at: c.insert(at.there, at.pages), starts=ADOPTION, down=1),
    "insert from the host": Call(
        run=lambda c, at: c.insert(at.tokens, [0, 1, 2, 3]), starts=ADOPTION, down=1, up=2
    ),
    "insert of what is there": Call(
        run=lambda c, at: c.insert(at.there[:8], at.pages[:2]), starts=ADOPTION[:1], down=1
    ),
    "evict": Call(
        run=lambda c, at: (c.release(at.match), c.evict(1)),
        starts=("upkeep_advance_cuda", "owners_free_cuda"),
        up=1,
    ),
    "evict nothing": Call(run=lambda c, at: c.evict(0)),
    "clear": Call(
        run=lambda c, at: (c.release(at.match), c.clear()),
        starts=("upkeep_advance_cuda", "owners_free_cuda"),
        up=1,
    ),
}


@recorded
@pytest.mark.parametrize("name", CALLS)
def test_what_a_call_launches_and_copies(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = RecordingDevice()
    monkeypatch.setattr("jitalloc.gpu.slab.device", lambda: gpu)
    cache: Any = PrefixCache(PagePool(8, 4, device="cuda"))
    pages = cache.pool.alloc(4)
    cache.insert(np.arange(8, dtype=np.int32), pages[:2])
    tokens = np.arange(16, dtype=np.int32)
    at = SimpleNamespace(tokens=tokens, there=gpu.upload(tokens), pages=pages)
    at.match = cache.match(tokens)  # the step that the next launch brings to the GPU
    gpu.waits.clear()
    gpu.starts.clear()
    call = CALLS[name]
    call.run(cache, at)
    assert tuple(gpu.starts) == call.starts
    assert (gpu.waits.count("download"), gpu.waits.count("upload")) == (call.down, call.up)
    assert set(gpu.waits) <= {"download", "upload"}


def test_the_clock_of_the_gpu_follows_that_of_the_host() -> None:
    cache = stored(8, 4, "ab")
    pool, step = cache.pool, cache.pool.step
    for _ in range(3):
        cache.release(cache.match(spell("ab", 4)))
    assert pool._gpu.download(pool._slab)[STEP] == step  # nothing was launched
    assert pool._host[STEP] == step + 6
    assert pool.step == step + 6
    cache.release(cache.match(spell("ab", 4)))
    pool.alloc(1)
    assert pool._gpu.download(pool._slab)[STEP] == step + 9
    pool.refcount(up([0]))  # no step
    assert pool._host[STEP] == pool.step == step + 9


def test_the_clock_of_the_host_meets_that_of_the_gpu_where_calls_failed() -> None:
    cache = stored(8, 4, "ab")
    pool, step = cache.pool, cache.pool.step
    pool.free(up([7]))
    cache.evict(0)
    with pytest.raises(DoubleFree):
        _ = pool.step
    assert pool._host[STEP] == pool.step == step + 1
    pool._slab[STEP] += 5  # as a CUDA graph does
    assert pool.step == pool._host[STEP] == step + 6


def test_steps_of_the_host_wait_for_the_end_of_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = stored(8, 4, "ab")
    pool, step, out = cache.pool, cache.pool.step, up([0])
    cache.release(cache.match(spell("ab", 4)))
    with monkeypatch.context() as patch:
        patch.setattr(type(pool._gpu), "capturing", lambda _gpu: True)
        pool.alloc(1, out=out)
    assert pool._gpu.download(pool._slab)[STEP] == step + 1
    assert pool.step == step + 3


# Bad input.


def refused(fault: Fault, at: SimpleNamespace) -> None:
    before, names = [state(each) for each in at.caches], dict(at.cache._namespaces.numbers)
    with pytest.raises(errors.JitallocError) as caught:
        fault.call(at)
    error: Any = caught.value
    assert type(error) is fault.error
    if fault.argument is not None:
        assert (error.argument, error.position) == (fault.argument, fault.position)
        if fault.value is not ANY:
            assert (type(error.value), error.value) == (type(fault.value), fault.value)
    assert [state(each) for each in at.caches] == before
    assert (at.match.locked, at.cache._namespaces.numbers) == (True, names)
    for each in at.caches:
        each.check()


@pytest.mark.parametrize("name", CUDA_PREFIX_FAULTS)
def test_bad_input_is_refused_and_changes_nothing(name: str) -> None:
    refused(CUDA_PREFIX_FAULTS[name], cuda_prefix_caches())


@pytest.mark.parametrize("name", [name for name in PREFIX_FAULTS if name != "tokens on a GPU"])
def test_bad_input_of_the_host_is_refused_and_changes_nothing(name: str) -> None:
    refused(PREFIX_FAULTS[name], cuda_prefix_caches(lambda cache: cache))


def test_an_earlier_failure_is_raised_by_every_call_that_waits() -> None:
    cache = stored(8, 4, "ab")
    match, tokens = cache.match(up(spell("a", 4))), up(spell("ab", 4))
    for call in (
        lambda: cache.insert(tokens, up([0, 1])),
        cache.check,
        cache.snapshot,
        lambda: cache.restore(cache.snapshot()),
        lambda: cache.pool.resize(9),
        lambda: cache.pool.defragment(),
        lambda: cache.pool.defragment(src=up([0] * 4), dst=up([0] * 4)),
    ):
        before = state(cache)
        assert cache.pool.free(up([0, 0])).tolist() == [NULL]
        with pytest.raises(DoubleFree):
            call()
        assert state(cache) == before
        assert match.locked
    cache.release(match)
    assert cache.pool.refcount(up([0])).tolist() == [1]
    cache.check()


def test_exhaustion_is_told_late_and_leaves_the_cache() -> None:
    cache = stored(6, 4, "abcd")
    assert cache.pool.alloc(3).tolist() == [NULL] * 3
    assert (cache.num_cached, cache.evict(1)) == (4, 1)
    with pytest.raises(OutOfPages):
        _ = cache.pool.num_free
    assert cache.pool.alloc(3).size == 3
    cache.check()


def test_a_cached_page_that_its_user_has_freed_too_often_is_told_late() -> None:
    cache = stored(6, 4, "ab")
    cache.pool.free(up([1]))
    assert cache.evict(1) == 1
    with pytest.raises(DoubleFree):
        cache.pool.check()


def test_check_compares_the_tokens_of_both_sides() -> None:
    cache = stored(6, 4, "ab")
    cache._tokens[20] += 1  # of a page that nobody knows the tokens of
    cache.check()
    cache._tokens[5] += 1
    with pytest.raises(CorruptState, match="page 1 differ"):
        cache.check()


# Interruptions.


@pytest.mark.parametrize("name", ["insert", "evict", "clear"])
def test_what_changes_both_sides_is_not_cut_in_two(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, works = stored(16, 4, "abc"), []
    whole = type(cache.pool)._uninterrupted

    def noted(pool: Any, work: Any) -> Any:
        before = HostView(pool).arrays.refcount.tolist()
        made = whole(pool, work)
        works.append(before != HostView(pool).arrays.refcount.tolist())
        return made

    monkeypatch.setattr(type(cache.pool), "_uninterrupted", noted)
    calls = {
        "insert": lambda: cache.insert(spell("x", 4), cache.pool.alloc(1)),
        "evict": lambda: cache.evict(1),
        "clear": cache.clear,
    }
    calls[name]()
    assert works == [True]
    cache.check()
