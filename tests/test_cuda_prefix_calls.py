"""The prefix cache on the GPU as its callers see it: arrays, launches, errors, locks.

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
    DoubleFree,
    InvalidArgument,
    NotLocked,
    OutOfPages,
    PagePool,
    PrefixCache,
    WrongDevice,
    _cuda,
    errors,
)
from jitalloc.cuda import CudaPrefixBatch, CudaPrefixCache, CudaPrefixMatch
from tests.cuda_prefix_faults import CUDA_PREFIX_FAULTS, cuda_prefix_caches
from tests.cuda_prefix_pairs import state, stored, up
from tests.gpu import ON_DEVICE
from tests.pool_faults import ANY
from tests.prefix_pairs import spell
from tests.test_cuda_waits import RecordingDevice

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


def test_pages_stay_on_the_gpu_and_numbers_come_down() -> None:
    cache = stored(16, 4, "abc")
    device = type(up([0]))
    match = cache.match(up(spell("abx", 4)))
    assert type(match) is CudaPrefixMatch
    assert (type(match.pages), match.pages.dtype) == (device, np.int32)
    assert [type(each) for each in (match.num_tokens, match.num_pages)] == [int, int]
    assert [type(each) for each in (match.partial_page, match.partial_tokens)] == [int, int]
    assert repr(match) == "CudaPrefixMatch(num_tokens=8, pages=[0 1]): locked"
    batch = cache.match_batch(up(spell("abca", 4)), up([0, 8, 8, 16], np.int64))
    assert type(batch) is CudaPrefixBatch
    for name, dtype in (("num_tokens", np.int64), ("indptr", np.int32), ("pages", np.int32)):
        assert type(getattr(batch, name)) is device
        assert getattr(batch, name).dtype == dtype
    assert (batch.num_tokens.tolist(), batch.pages.tolist()) == ([8, 0, 0], [0, 1])
    result = cache.insert(up(spell("ab", 4)), match.pages)
    assert (type(result.pages), type(result.num_present)) == (device, int)
    cache.release(batch)
    cache.release(match)


def test_arrays_that_are_not_contiguous_are_read() -> None:
    cache = stored(16, 4, "abc")
    tokens = up(np.repeat(spell("abc", 4), 2))[::2]
    with cache.match(tokens) as match, cache.pin(tokens) as pinned:
        assert match.pages.tolist() == pinned.pages.tolist() == [0, 1, 2]
    assert (cache.num_locked, cache.num_pinned) == (0, 0)


def test_empty_calls() -> None:
    cache = stored(4)
    none = up([])
    for call in (cache.match, cache.pin):
        with call(none) as match:
            assert (match.num_pages, match.pages.size) == (0, 0)
    with cache.match_batch(none, up([0], np.int64)) as batch:
        assert (batch.num_tokens.size, batch.indptr.tolist(), batch.pages.size) == (0, [0], 0)
    assert cache.insert(none, none)[1:] == (0, 0)
    assert (cache.evict(0), cache.evict(5), len(cache)) == (0, 0, 0)
    cache.check()


# Every call is one launch.

CALLS: dict[str, tuple[Callable[[Any, Any], Any], int]] = {
    "prefix_match_cuda": (lambda c, at: c.match(at.tokens), 2),
    "prefix_pin_cuda": (lambda c, at: c.pin(at.tokens), 2),
    "prefix_match_batch_cuda": (lambda c, at: c.match_batch(at.tokens, at.bounds), 3),
    "prefix_release_cuda": (lambda c, at: c.release(at.match), 1),
    "prefix_insert_cuda": (lambda c, at: c.insert(at.tokens, at.pages), 1),
    "reclaim_evict_cuda": (lambda c, at: c.evict(1), 1),
    "reclaim_clear_cuda": (lambda c, at: (c.release(at.match), at.forget(), c.clear()), 1),
}


@pytest.mark.skipif(not _cuda.SIMULATED, reason="looks at the simulator's device")
@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_one_launch_and_few_copies(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = RecordingDevice()
    monkeypatch.setattr("jitalloc.cuda.slab.device", lambda: gpu)
    cache: Any = PrefixCache(PagePool(8, 4, device="cuda"))
    pages = cache.pool.alloc(4)
    cache.insert(gpu.upload(np.arange(8, dtype=np.int32)), pages[:2])
    tokens = gpu.upload(np.arange(16, dtype=np.int32))
    match, bounds = cache.match(tokens), gpu.upload(np.array([0, 8, 16]))

    def forget() -> None:
        gpu.waits.clear()
        gpu.starts.clear()

    at = SimpleNamespace(tokens=tokens, pages=pages, match=match, bounds=bounds, forget=forget)
    forget()
    call, downloads = CALLS[name]
    call(cache, at)
    assert gpu.starts == [name]
    assert gpu.waits.count("download") == downloads
    assert set(gpu.waits) <= {"download", "upload"}


# Bad input.


@pytest.mark.parametrize("name", CUDA_PREFIX_FAULTS)
def test_bad_input_is_refused_and_changes_nothing(name: str) -> None:
    at, fault = cuda_prefix_caches(), CUDA_PREFIX_FAULTS[name]
    before = (state(at.cache), state(at.timed.device_cache))
    names = dict(at.cache._namespaces)
    with pytest.raises(errors.JitallocError) as caught:
        fault.call(at)
    error: Any = caught.value
    assert type(error) is fault.error
    if fault.argument is not None:
        assert (error.argument, error.position) == (fault.argument, fault.position)
        if fault.value is not ANY:
            assert (type(error.value), error.value) == (type(fault.value), fault.value)
    assert (state(at.cache), state(at.timed.device_cache)) == before
    assert (at.match.locked, at.cache._namespaces) == (True, names)
    at.prefix.check()


def test_an_earlier_failure_is_raised_by_every_call() -> None:
    cache = stored(8, 4, "ab")
    match, tokens = cache.match(up(spell("a", 4))), up(spell("ab", 4))
    page = up([0])
    for call in (
        lambda: cache.match(tokens),
        lambda: cache.match_batch(tokens, up([0, 8], np.int64)),
        lambda: cache.pin(tokens),
        lambda: cache.insert(tokens, up([0, 1])),
        lambda: cache.release(match),
        lambda: cache.evict(1),
        cache.clear,
        cache.stats,
        cache.check,
        cache.snapshot,
        lambda: cache.restore(cache.snapshot()),
        lambda: cache.num_cached,
        lambda: cache.num_locked,
        lambda: cache.num_evictable,
        lambda: cache.num_pinned,
        lambda: len(cache),
        lambda: cache.pool.resize(9),
        lambda: cache.pool.defragment(),
        lambda: cache.pool.defragment(src=up([0] * 4), dst=up([0] * 4)),
        lambda: cache.pool.clear(),
    ):
        before = state(cache)
        assert cache.pool.free(up([0, 0])).tolist() == [NULL]
        with pytest.raises(DoubleFree):
            call()
        assert state(cache) == before
        assert match.locked
    cache.release(match)
    assert cache.pool.refcount(page).tolist() == [1]
    cache.check()


# Locks.


def test_a_match_is_given_back_once_and_to_its_own_cache() -> None:
    cache, other = stored(16, 4, "ab"), stored(16, 4, "ab")
    match, pin = cache.match(up(spell("ab", 4))), cache.pin(up(spell("a", 4)))
    before = state(cache)
    wrong = [(other.release, match), (other.unpin, match), (other.unpin, pin)]
    wrong += [(cache.release, pin), (cache.unpin, match)]
    for call, each in wrong:
        with pytest.raises(NotLocked):
            call(each)
    assert state(cache) == before
    cache.release(match)
    cache.unpin(pin)
    for call, each in ((cache.release, match), (cache.unpin, pin)):
        with pytest.raises(NotLocked):
            call(each)
    assert (cache.num_locked, match.locked, pin.locked) == (0, False, False)
    cache.check()


@pytest.mark.parametrize("name", ["match", "pin", "match_batch", "release"])
def test_an_interrupted_call_leaves_no_lock_and_gives_none_back_twice(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, tokens = stored(16, 4, "abc"), up(spell("abc", 4))
    held, match = cache.match(tokens), cache.match(tokens)
    run = type(cache.pool)._run

    def interrupted(*args: Any) -> int:
        status: int = run(*args)
        if not done:
            done.append(status)
            raise KeyboardInterrupt
        return status

    done: list[int] = []
    calls = {
        "match_batch": lambda: cache.match_batch(tokens, up([0, 12], np.int64)),
        "release": lambda: cache.release(match),
    }
    with monkeypatch.context() as patch:
        patch.setattr(type(cache.pool), "_run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            calls.get(name, lambda: getattr(cache, name)(tokens))()
    if name == "release":
        with pytest.raises(NotLocked):  # it was done
            cache.release(match)
    else:
        cache.release(match)
    assert (cache.num_locked, cache.num_pinned) == (3, 0)
    cache.release(held)
    assert cache.num_locked == 0
    cache.check()


def test_exhaustion_is_told_late_and_leaves_the_cache() -> None:
    cache = stored(6, 4, "abcd")
    assert cache.pool.alloc(3).tolist() == [NULL] * 3
    with pytest.raises(OutOfPages):
        _ = cache.num_cached
    assert (cache.evict(1), cache.pool.alloc(3).size) == (1, 3)
    cache.check()
