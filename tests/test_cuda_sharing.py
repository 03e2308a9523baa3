"""Sequences behind a prefix cache on the GPU: what the model says, locks, whole states.

NUMBA_ENABLE_CUDASIM=1 NUMBA_DISABLE_JIT=1 pytest tests/test_cuda_sharing.py
"""

from __future__ import annotations

import threading
from random import Random
from typing import Any

import numpy as np
import pytest

from jitalloc import (
    NULL,
    DoubleFree,
    InvalidArgument,
    OutOfPages,
    PagedKVCache,
    PagePool,
    PrefixCache,
    UnknownSequence,
)
from jitalloc.cuda import CudaPagedKVCache
from jitalloc.sequences.state import LOCKED
from tests.cuda_cache_pairs import Both
from tests.cuda_prefix_pairs import up
from tests.cuda_sharing_pairs import CudaSharingPair
from tests.gpu import ON_DEVICE
from tests.sharing_pairs import random_turn
from tests.sharing_steps import SHARING_BACKGROUND, SHARING_STEPS
from tests.test_sharing import PAIRS

pytestmark = [*ON_DEVICE, pytest.mark.usefixtures("few_threads")]
TEXT = list(range(24))  # six pages of four tokens
TWO = {"num_pages": 24, "page_size": 4}


@pytest.mark.parametrize("options", PAIRS, ids=lambda each: str(each.get("policy", "lru")))
@pytest.mark.parametrize("seed", range(1, 3))
def test_random_histories(
    options: dict[str, Any], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if seed == 2:  # nothing fits what is fetched at once
        monkeypatch.setattr("jitalloc.sequences.host_table_cuda.FIRST", 8)
    random, pair = Random(f"{options} {seed}"), CudaSharingPair(**options)
    for _ in range(60):
        random_turn(pair, random)


WHOLE = ("prefix_insert", "prefix_pin", "prefix_match_batch", "prefix_upkeep_copy")
WHOLE += ("prefix_upkeep_resize", "prefix_upkeep_rename", "reclaim_clear", "sharing_room")


@pytest.mark.parametrize("name", WHOLE)
def test_the_prefix_cache_and_what_is_done_to_all_of_it(name: str) -> None:
    random, pair = Random(name), CudaSharingPair(num_pages=18, order="fifo", policy="slru")
    for _ in range(8):
        SHARING_STEPS[f"{name}_cpu"](pair, random)
        for _ in range(2):
            random.choice(SHARING_BACKGROUND)(pair, random)


# By hand, beside the CPU.


@pytest.fixture
def both() -> Both:
    """Twenty-four pages of four tokens, six rows of eight pages, nothing cached."""
    return Both(TWO, 6, 8, {"policy": "lru"})


def test_forks_of_what_is_not_cached_yet_lock_what_they_share(both: Both) -> None:
    both.must("allocate", "a", tokens=TEXT[:10])
    both.must("fork", "a", "b")
    both.must("append", "b", tokens=TEXT[10:17])
    both.must("fork", "b", "c")
    assert both.must("commit", "b") == 16
    columns = both.gpu.tables.arrays.columns
    assert columns[LOCKED, :3].tolist() == [2, 4, 4]
    for seq_id in "cab":
        both.must("free", seq_id)
    assert both.device.prefix_cache.num_locked == 0


def test_a_fork_that_was_told_nothing_knows_what_is_cached(both: Both) -> None:
    both.must("allocate", "a", 10)
    both.must("fork", "a", "b")
    assert both.must("commit", "a", tokens=TEXT[:8]) == 8
    assert both.must("commit", "b") == 8
    assert both.do("commit", "b", tokens=[0, 1, 9])[0] is InvalidArgument
    assert both.must("commit", "b", tokens=TEXT[:4]) == 8
    both.must("apply_streaming_llm", "b", 0, 2)
    assert both.must("commit", "b") == 0


def test_two_that_compute_the_same_meet_at_the_commit(both: Both) -> None:
    for seq_id in "ab":
        both.must("allocate", seq_id, tokens=TEXT[:10])
    assert [both.must("commit", seq_id) for seq_id in "ab"] == [8, 8]
    tables = both.device.block_tables(both.device.rows(["a", "b"])).tolist()
    assert tables[0][:2] == tables[1][:2]
    for seq_id in "cd":
        both.must("allocate", seq_id, 9)
        both.must("commit", seq_id, tokens=TEXT[:8])
    assert both.gpu_pool.num_used == both.cpu_pool.num_used == 6


def test_what_the_rows_lock_is_followed_when_it_is_asked_for(both: Both) -> None:
    both.must("allocate", "a", tokens=TEXT)
    both.must("commit", "a")
    device, rows = both.device, both.gpu.up([0], np.dtype(np.int32))
    device.fork("a", "b")
    device.truncate_batch(device.rows(["b"]), 6)
    device.free_batch(rows, commit=False)
    index = device.prefix_cache.arrays
    assert index.nodes[0, 5] == 1  # the host has not looked since
    assert (device.prefix_cache.num_locked, device.num_reclaimable) == (2, 4)
    assert device.prefix_cache.evict(9) == 4
    device.check(held=[])


def test_rows_that_are_wrong_leave_nothing_in_the_cache(both: Both) -> None:
    both.must("allocate", "a", tokens=TEXT[:8])
    for rows in ([0, 0], [0, 5], [0, 99], [-7, 0]):
        assert both.do("commit_batch", rows)[0] is InvalidArgument
        assert both.do("commit_batch", rows, [8] * len(rows))[0] is InvalidArgument
    assert "num_tokens[0] = 9: the sequence has 8" in both.do("commit_batch", [0], [9])[1]
    both.must("append", "a", tokens=[9])
    for rows in ([0, 0], [0, 5], [0, 99], [-7, 0]):
        assert both.do("free_batch", rows)[0] is InvalidArgument
        assert both.device.prefix_cache.num_cached == 0
    device = both.device
    out = device.free_batch(both.gpu.up([NULL, 0, NULL], np.dtype(np.int32)))
    assert out.tolist() == [1]
    assert (device.prefix_cache.num_cached, len(device)) == (2, 0)
    device.check(held=[])


def test_tokens_may_lie_on_either_side(both: Both) -> None:
    device = both.device
    assert device.allocate("a", tokens=TEXT[:9]) == 0
    assert device.commit("a", tokens=up(TEXT[:9])) == 8
    assert device.allocate("b", tokens=up(TEXT[:9])) == 8
    assert device.allocate("c", tokens=np.array(TEXT[:13], np.int64)) == 8
    assert device.commit("c", tokens=TEXT[:12]) == 12
    for tokens, error in (
        ([1.5], "tokens"),
        ([-1], "tokens"),
        ([[1], [2]], "tokens"),
        ("x", "tokens"),
    ):
        for call in (
            lambda t: device.allocate("x", tokens=t),
            lambda t: device.commit("a", tokens=t),
        ):
            with pytest.raises(InvalidArgument, match=error):
                call(tokens)
    device.check(held=[])


def test_a_sequence_that_has_ended_on_the_gpu_is_unknown(both: Both) -> None:
    both.must("allocate", "a", tokens=TEXT[:9])
    both.must("allocate", "b", tokens=TEXT[:9])
    device = both.device
    for seq_id, call in (("a", device.commit), ("b", device.free)):
        device.free_batch(device.rows([seq_id]), commit=False)
        device._ids.stale = False  # as if a graph had ended it
        with pytest.raises(UnknownSequence):
            call(seq_id)
    assert (len(device), device.prefix_cache.num_locked) == (0, 0)
    device.check(held=[])


def test_make_room(both: Both) -> None:
    for start in (0, 1, 2):
        both.must("allocate", "a", tokens=[start * 100 + token for token in TEXT])
        both.must("commit", "a")
        both.must("free", "a")
    assert both.must("make_room", 6) == 0
    both.must("allocate", "held", 16)
    assert both.must("make_room", 4) == 2
    assert both.do("make_room", 21)[0] is OutOfPages
    assert both.must("make_room", 20) == 16
    both.must("append_batch", [0], 16)
    alone = Both(TWO, 6, 8)
    assert alone.must("make_room", 24) == 0
    assert alone.do("make_room", 25)[0] is OutOfPages


def test_an_append_of_a_batch_evicts_nothing(both: Both) -> None:
    for start in (0, 1, 2):
        both.must("allocate", "a", tokens=[start * 100 + token for token in TEXT])
        both.must("commit", "a")
        both.must("free", "a")
    both.must("allocate", "b", 24)
    device = both.device
    slots, _copies = device.append_batch(device.rows(["b"]))
    assert slots.tolist() == [NULL]
    with pytest.raises(OutOfPages):
        _ = device.num_free
    assert device.prefix_cache.num_cached == 18
    both.must("append", "b")  # by its id it waits anyhow
    assert device.prefix_cache.num_cached == 17


def test_an_earlier_failure_is_raised_and_nothing_is_done(both: Both) -> None:
    both.must("allocate", "a", tokens=TEXT[:9])
    device = both.device
    for call in (
        lambda: device.allocate("x", tokens=TEXT[:5]),
        lambda: device.allocate("x", 5),
        lambda: device.commit("a"),
        lambda: device.free("a"),
        lambda: device.free_batch(device.rows(["a"])),
        lambda: device.make_room(1),
        lambda: device.evict(),
        lambda: device.prefix_cache.evict(1),
        lambda: device.num_reclaimable,
        lambda: device.prefix_cache.num_locked,
    ):
        device.pool.free(up([20]))
        with pytest.raises(DoubleFree):
            call()
        both.agree()


def test_a_lock_of_a_call_cut_short_goes_back(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    both.must("allocate", "a", tokens=TEXT)
    both.must("free", "a")

    def interrupted(*_args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(both.device._rows), "_plan_there", interrupted)
        with pytest.raises(KeyboardInterrupt):
            both.device.allocate("b", tokens=TEXT)
    assert both.device.prefix_cache.num_locked == 0
    assert "b" not in both.device
    both.device.check(held=[])


def test_a_state_moves_between_devices(tmp_path: Any) -> None:
    both = Both({"num_pages": 30, "page_size": 4, "order": "fifo"}, 5, 9, {"policy": "slru"})
    both.must("allocate", "a", tokens=TEXT, namespace="space")
    both.must("commit", "a")
    both.must("fork", "a", "b")
    both.must("append_batch", [0, 1], [3, 1], tokens=[7, 8, 9, 7])
    snapshot = both.device.snapshot()
    assert (snapshot.tables == both.cpu.snapshot().tables).all()
    both.must("free", "a")
    for cache in (both.device, both.cpu):
        cache.restore(snapshot)
    both.agree()
    both.device.save(tmp_path / "cache.npz")
    again: Any = CudaPagedKVCache.load(tmp_path / "cache.npz")
    on_cpu: Any = PagedKVCache.load(tmp_path / "cache.npz")
    for cache in (again, on_cpu):
        assert cache.prefix_cache.num_locked == 6
        assert cache.commit("a") == 24
        assert cache.free("a") == 1
        cache.check(held=[])
    assert (again.pool.snapshot().slab == on_cpu.pool.snapshot().slab).all()


def test_two_caches_on_one_index() -> None:
    pool: Any = PagePool(**TWO, device="cuda")  # type: ignore[arg-type]
    prefix: Any = PrefixCache(pool)
    caches: list[Any] = [PagedKVCache(pool, 4, 8, prefix_cache=prefix) for _ in range(2)]
    one, two = caches
    one.allocate("a", tokens=TEXT)
    one.commit("a")
    assert two.allocate("a", tokens=TEXT) == 24
    two.fork("a", "b")
    two.free_batch(two.rows(["a"]), commit=False)
    one.free("a")
    assert (one.num_reclaimable, prefix.num_locked) == (0, 6)
    two.truncate_batch(two.rows(["b"]), 8)
    for i in range(3):
        one.allocate(i, 7 * 4)
    with pytest.raises(OutOfPages):
        one.allocate("more", 7 * 4)
    assert (len(one), prefix.num_cached, prefix.num_locked) == (3, 3, 2)
    one.clear()
    two.free_batch(two.rows(["b"]))
    assert prefix.evict(9) == 3
    for cache in caches:
        cache.check(held=[])


def test_threads_share_one_index() -> None:
    pool: Any = PagePool(90, 4, device="cuda")
    prefix: Any = PrefixCache(pool)
    caches: list[Any] = [PagedKVCache(pool, 4, 16, prefix_cache=prefix) for _ in range(2)]
    failures: list[BaseException] = []

    def serve(cache: Any, seed: int) -> None:
        random = Random(seed)
        try:
            for i in range(8):
                tokens = np.repeat(random.choices(range(3), k=12), 4)[: random.randrange(49)]
                cache.allocate(i, tokens=tokens)
                cache.commit(i)
                cache.append_batch(cache.rows([i]), 1, tokens=up([5]))
                prefix.release(prefix.match(tokens))
                cache.free(i)
                prefix.evict(2)
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=serve, args=(each, i)) for i, each in enumerate(caches)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures
    for cache in caches:
        cache.check(held=[])
