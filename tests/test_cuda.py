"""The pool on the GPU as its callers see it: arrays, late errors, and nothing that waits."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import jitalloc
from jitalloc import NULL, DoubleFree, InvalidArgument, OutOfPages, PagePool, WrongDevice
from jitalloc.cuda import CudaPagePool
from jitalloc.gpu import device as _cuda_device
from tests.gpu import ON_DEVICE
from tests.pairs import pool_state

# On a GPU, or set NUMBA_ENABLE_CUDASIM=1 NUMBA_DISABLE_JIT=1 to run them.
pytestmark = ON_DEVICE


@pytest.fixture
def pool() -> Any:
    """Eight pages of four tokens on the GPU."""
    return PagePool(8, 4, device="cuda")


def up(values: Any, dtype: Any = np.int64) -> Any:
    return _cuda_device.device().upload(np.array(values, dtype))


def ids(*pages: int) -> Any:
    return up(pages, np.int32)


# The class.


def test_the_device_chooses_the_class(pool: Any) -> None:
    assert type(pool) is CudaPagePool
    assert isinstance(pool, PagePool)
    assert (pool.device, PagePool(4).device, type(PagePool(4))) == ("cuda", "cpu", PagePool)
    assert "device='cuda'" in repr(pool)


def test_a_class_of_the_callers_own_stays_on_its_device() -> None:
    class Mine(PagePool):
        pass

    assert type(Mine(4)) is Mine
    with pytest.raises(WrongDevice, match="'cpu' only"):
        Mine(4, device="cuda")
    with pytest.raises(WrongDevice, match="'cuda' only"):
        CudaPagePool(4)


def test_caches_stay_on_the_device_of_their_pool(pool: Any) -> None:
    on_cpu = jitalloc.PrefixCache(PagePool(8, 4))
    with pytest.raises(jitalloc.InvalidArgument, match="another pool"):
        jitalloc.PagedKVCache(pool, 4, 4, prefix_cache=on_cpu)


# Arrays.


@pytest.mark.parametrize("values", [np.zeros(1, np.int32), [0], (0,), 0, None])
def test_host_memory_is_refused(pool: Any, values: Any) -> None:
    pool.alloc(1)
    for call in (pool.free, pool.share, pool.refcount, pool.free_slots, pool.admit):
        with pytest.raises(WrongDevice):
            call(values)
    if values is not None:
        with pytest.raises(WrongDevice):
            pool.alloc(1, out=values)
    assert pool.num_used == 1


def test_dtypes_and_shapes_are_exact(pool: Any) -> None:
    with pytest.raises(InvalidArgument, match="must be int32"):
        pool.free(up([0]))
    with pytest.raises(InvalidArgument, match="one dimension"):
        pool.free(up([[0]], np.int32))
    with pytest.raises(InvalidArgument, match="exactly 2"):
        pool.alloc(2, out=ids(0, 0, 0))
    with pytest.raises(InvalidArgument, match="one-dimensional array of int32"):
        pool.alloc(1, out=up([0]))
    with pytest.raises(InvalidArgument, match="2 elements"):
        pool.alloc_decode(up([1, 1]), up([-1]))


def test_arrays_that_are_not_contiguous_are_read(pool: Any) -> None:
    pool.alloc(6)
    assert pool.free(ids(0, 7, 2, 7, 4)[::2]).tolist() == [3]
    pool.check(held=[1, 3, 5])


def test_results_go_into_buffers_of_the_caller(pool: Any) -> None:
    out = ids(5, 5, 5)
    assert pool.alloc(3, out=out) is out
    indptr, pages = pool.alloc_batch(up([1, 2]), indptr=ids(9, 9, 9), out=ids(7, 7, 7, 7))
    assert (out.tolist(), indptr.tolist(), pages.tolist()) == ([0, 1, 2], [0, 1, 3], [3, 4, 5, -1])
    slots = pool.alloc_extend(up([0]), up([3]), up([-1]), out=up([7] * 5))
    assert slots.tolist() == [24, 25, 26, -1, -1]
    assert pool.alloc_decode(up([4]), slots[2:3], out=slots[2:3]).tolist() == [27]


def test_without_a_buffer_results_have_their_size(pool: Any) -> None:
    assert pool.alloc_batch(up([1, 2])).pages.tolist() == [0, 1, 2]
    slots = pool.alloc_extend(up([0, 0]), up([5, 1]), up([-1, -1]))
    assert slots.tolist() == [12, 13, 14, 15, 16, 20]
    assert pool.try_alloc(3) is None
    assert pool.try_alloc(2).tolist() == [6, 7]


# Errors come late.


def test_a_buffer_too_short_is_an_error(pool: Any) -> None:
    pool.alloc_extend(up([0]), up([3]), up([-1]), out=up([7, 7]))
    with pytest.raises(InvalidArgument, match=r"out = 2: the call makes 3"):
        pool.check()
    _indptr, pages = pool.alloc_batch(up([3]), out=ids(7, 7))
    assert pages.tolist() == [NULL, NULL]
    with pytest.raises(InvalidArgument, match=r"out = 2: the call makes 3"):
        pool.check()
    assert pool.num_used == 0


def test_the_first_failure_is_kept_until_somebody_waits(pool: Any) -> None:
    pages = pool.alloc(3)
    assert pool.free(ids(0, 1, 0)).tolist() == [NULL]
    assert pool.alloc(6).tolist() == [NULL] * 6
    assert pool.alloc(1).tolist() == [3]  # calls go on
    with pytest.raises(DoubleFree) as caught:
        _ = pool.num_free
    assert (caught.value.position, caught.value.value) == (2, 0)
    assert caught.value.__notes__ == ["raised late: it is call 1 of the pool (free)"]
    assert pool.num_free == 4
    pool.check(held=[*pages.tolist(), 3])


@pytest.mark.parametrize(
    "wait",
    [
        lambda p: p.num_free,
        lambda p: p.num_released,
        lambda p: p.num_used,
        lambda p: p.available,
        lambda p: p.utilization,
        lambda p: p.step,
        lambda p: p.stats(),
        lambda p: p.check(),
        lambda p: p.snapshot(),
        lambda p: p.try_alloc(1),
        lambda p: repr(p),
    ],
)
def test_every_call_that_waits_raises_it(pool: Any, wait: Callable[[Any], Any]) -> None:
    pool.alloc(7)
    pool.alloc(2)
    with pytest.raises(OutOfPages) as caught:
        wait(pool)
    assert (caught.value.requested, caught.value.available) == (2, 1)
    wait(pool)


def test_more_pages_than_the_pool_has_are_refused_at_once(pool: Any) -> None:
    with pytest.raises(OutOfPages):
        pool.alloc(9)
    with pytest.raises(InvalidArgument):
        pool.alloc(-1)


def test_a_batch_that_names_a_page_often(pool: Any) -> None:
    """Across tiles of a block, and within one: the last mention counts for the order."""
    for order in ("fifo", "lifo", "sorted"):
        gpu, cpu = (PagePool(40, 4, order=order, device=where) for where in ("cuda", "cpu"))
        gpu.alloc(30)
        cpu.alloc(30)
        for _ in range(2):
            gpu.share(up(np.arange(30), np.int32))
            cpu.share(np.arange(30, dtype=np.int32))
        pages = np.random.default_rng(5).permutation(np.repeat(np.arange(30), 3)).astype(np.int32)
        for wrong in (np.append(pages, pages[3]), np.insert(pages, 61, pages[0])):
            with pytest.raises(DoubleFree) as right:
                cpu.free(wrong)
            assert gpu.free(up(wrong, np.int32)).tolist() == [NULL]
            with pytest.raises(DoubleFree) as caught:
                gpu.check()
            assert (caught.value.position, caught.value.value) == (
                right.value.position,
                right.value.value,
            )
        assert gpu.free(up(pages, np.int32)).tolist() == [cpu.free(pages)]
        assert gpu.alloc(35).tolist() == cpu.alloc(35).tolist()


@pytest.mark.parametrize("order", ["sorted", "fifo", "lifo"])
@pytest.mark.parametrize("wrong", [[4, 2], [2], [6], [4, 6, 4], [4, 8], [-1, 4], [4, 4], [2, 2, 4]])
def test_a_free_that_fails_leaves_everything(order: str, wrong: list[int]) -> None:
    """With pages that are released, free, held once, held twice, and none of the pool."""
    gpu, cpu = (PagePool(8, 4, order=order, device=where) for where in ("cuda", "cpu"))
    for each, array in ((gpu, ids), (cpu, lambda *pages: np.array(pages, np.int32))):
        each.alloc(6)
        each.share(array(5))
        each.free(array(1, 2))
    assert gpu.free(ids(0, 5, *wrong)).tolist() == [NULL]
    with pytest.raises(DoubleFree if 8 not in wrong and -1 not in wrong else jitalloc.InvalidPage):
        gpu.check()
    gpu.check(held=[0, 3, 4, 5, 5])
    assert gpu.alloc(4).tolist() == cpu.alloc(4).tolist()


@pytest.mark.filterwarnings("ignore:.*overflow encountered:RuntimeWarning")  # by NumPy's scalars
def test_a_count_of_owners_that_would_overflow(pool: Any) -> None:
    pool.alloc(1)
    pool.arrays.refcount[0] = 2**31 - 3
    pool.share(ids(0, 0, 0))
    with pytest.raises(jitalloc.InvalidPage) as caught:
        pool.check()
    assert caught.value.position == 2
    assert pool.refcount(ids(0)).tolist() == [2**31 - 3]


# Whole states.


def test_a_state_moves_between_devices(pool: Any, tmp_path: Any) -> None:
    pool.free(pool.alloc(5)[1:3])
    cpu = PagePool(2)
    cpu.restore(pool.snapshot())
    assert pool_state(cpu)["released"] == [1, 2]
    pool.save(tmp_path / "pool.npz")
    again = CudaPagePool.load(tmp_path / "pool.npz")
    assert again.alloc(5).tolist() == cpu.alloc(5).tolist() == [1, 2, 5, 6, 7]
    pool.restore(cpu.snapshot())
    assert (pool.num_free, pool.stats()) == (0, cpu.stats())


def test_a_state_that_is_broken_shows(pool: Any) -> None:
    pool.alloc(2)
    pool.arrays.refcount[1] = 0
    with pytest.raises(jitalloc.CorruptState, match="page 1"):
        pool.check()
    pool.arrays.refcount[1] = 1
    with pytest.raises(jitalloc.CorruptState, match="refcount of page 0"):
        pool.check(held=ids(1))


def test_moves_go_into_buffers_of_the_caller(pool: Any) -> None:
    pool.free(pool.alloc(6)[:3])
    src, dst = pool.defragment(src=ids(7, 7), dst=ids(7, 7, 7))
    assert (src.tolist(), dst.tolist()) == ([NULL] * 2, [NULL] * 3)
    with pytest.raises(InvalidArgument, match=r"out = 2: the call makes 3"):
        pool.check(held=[3, 4, 5])
    count = up([7])
    src, dst = pool.defragment(src=ids(7, 7, 7), dst=ids(7, 7, 7, 7), out=count)
    assert (src.tolist(), dst.tolist(), count.tolist()) == ([3, 4, 5], [0, 1, 2, NULL], [3])
    pool.check(held=[0, 1, 2])


def test_a_resize_keeps_a_call_that_failed_before(pool: Any) -> None:
    pool.free(ids(0))
    with pytest.raises(DoubleFree):
        pool.resize(20)
    pool.resize(20)
    assert (pool.num_pages, pool.alloc(20).size, pool.num_free) == (20, 20, 0)
    with pytest.raises(jitalloc.PageInUse, match="page 4 is held"):
        pool.resize(4)
    assert pool.num_pages == 20


def test_nothing_on_the_gpu_is_copied_or_pickled(pool: Any) -> None:
    prefix = jitalloc.PrefixCache(pool)
    cache = jitalloc.PagedKVCache(pool, 2, 4, prefix_cache=prefix)
    slots = jitalloc.SlotAllocator(4, device="cuda")
    mirror = jitalloc.PagedKVCache(PagePool(4, 4), 2, 2).mirror()
    for each in (pool, prefix, cache, cache.tables, slots, mirror):
        for way in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(jitalloc.SnapshotError, match=f"a {type(each).__name__} cannot be"):
                way(each)
    assert pool.alloc(8).tolist() == list(range(8))


def test_stats_without_runs(pool: Any) -> None:
    pool.free(pool.alloc(5)[1:3])
    stats = pool.stats(runs=False)
    assert (stats.longest_run, stats.fragmentation) == (None, None)
    assert stats == dataclasses.replace(pool.stats(), longest_run=None, fragmentation=None)
    with pytest.raises(InvalidArgument, match="runs = 0"):
        pool.stats(runs=0)


def test_tokens_on_the_gpu_may_be_a_batch_of_one(pool: Any) -> None:
    cache = jitalloc.PagedKVCache(pool, 2, 4, prefix_cache=jitalloc.PrefixCache(pool))
    cache.allocate("a", tokens=ids(1, 2, 3, 4, 5)[None])
    cache.commit("a")
    assert cache.allocate("b", tokens=ids(1, 2, 3, 4, 6)[None]) == 4
    with pytest.raises(InvalidArgument, match="shape of tokens = "):
        cache.allocate("c", tokens=ids(1, 2)[:, None])
