"""One random call for each kernel of the prefix cache and of sharing, for `test_twins.py`."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np

from jitalloc import errors
from jitalloc.pool.loops.upkeep import upkeep_advance_cpu
from jitalloc.prefix.loops.reclaim import reclaim_choose_cpu, reclaim_count_cpu, reclaim_room_cpu
from jitalloc.prefix.namespaces import MAIN_ROOT
from jitalloc.prefix.state import REQUESTED
from jitalloc.sequences.loops.sharing import (
    sharing_find_cpu,
    sharing_follow_cpu,
    sharing_leave_cpu,
    sharing_unlock_cpu,
    sharing_use_cpu,
)
from tests.prefix_pairs import cached, cached_model
from tests.sharing_pairs import (
    SharingPair,
    allocate,
    allocate_batch,
    append,
    commit,
    defragment,
    free,
    invalidate,
    look,
    look_up,
    own,
    prompt,
    reclaim,
    room,
    some_rows,
    touch,
    truncate,
)

Step = Callable[[SharingPair, Random], Any]


def insert(pair: SharingPair, random: Random) -> None:
    """By hand: pages of the caller's own, given up at once."""
    tokens = prompt(pair, random)
    got = pair.call("alloc", len(tokens) // pair.pool.page_size)
    if got[0] == "returned":
        pair.compare(
            lambda: pair.prefix.insert(tokens, got[1]),
            lambda: pair.prefix_model.insert(tokens, got[1]),
        )
        pair.call("free", got[1])


def pin(pair: SharingPair, random: Random) -> None:
    tokens = prompt(pair, random)
    try:
        model = pair.prefix_model.pin(tokens)
    except errors.PinBudget:
        return
    pinned = pair.prefix.pin(tokens)
    assert pinned.pages.tolist() == model.pages
    pair.agree()
    pair.compare(lambda: pair.prefix.unpin(pinned), lambda: pair.prefix_model.unpin(model))


def match_batch(pair: SharingPair, random: Random) -> None:
    prompts = [prompt(pair, random) for _ in range(random.randrange(4))]
    indptr = np.cumsum([0, *map(len, prompts)])
    tokens = [token for each in prompts for token in each]
    step = pair.model.step
    models = [pair.prefix_model.match(each) for each in prompts]
    pair.model.step = step + 1  # one call is one step
    batch = pair.prefix.match_batch(tokens, indptr)
    assert [page for each in models for page in each.pages] == batch.pages.tolist()
    assert [each.partial[0] for each in models] == batch.partial_pages.tolist()
    pair.agree()
    for each in models:
        pair.prefix_model.release(each)
    pair.model.step = step + 2
    pair.prefix.release(batch)
    pair.agree()


def choose(pair: SharingPair, random: Random) -> None:
    """An eviction in the two steps in which a pool of another device has it done."""
    n = random.randrange(4)
    victims = np.empty(n, np.int32)

    def evict() -> int:
        count = pair.prefix._run(reclaim_choose_cpu, n, REQUESTED, victims)
        if count:
            pair.pool.free(victims[:count])
        return count

    pair.compare(evict, lambda: pair.prefix_model.evict(n))


def advance(pair: SharingPair, random: Random) -> None:
    steps = random.randrange(3)
    upkeep_advance_cpu.run(pair.pool._slab, steps)
    pair.model.step += steps
    pair.agree()


def share_elsewhere(pair: SharingPair, random: Random) -> None:
    """A sequence of another device begins on cached pages, or fails to; what it locks goes back."""
    tokens, rows, row = np.array(prompt(pair, random), np.int32), 3, random.randrange(3)
    held, out = np.zeros(2 * rows, np.int64), np.empty(tokens.size // pair.pool.page_size, np.int32)
    path = pair.prefix_model.path(tuple(tokens.tolist()), None)
    count = pair.prefix._run(sharing_find_cpu, held, row, MAIN_ROOT, tokens, 0, out)
    assert out[:count].tolist() == [node.page for node in path]
    assert held.reshape(2, rows)[:, row].tolist() == [count, path[-1].page if path else 0]
    locked = [node for node in pair.prefix_model.nodes.values() if node.locks or node in path]
    assert pair.prefix.num_locked == len(locked)
    begins = random.randrange(2)
    pair.prefix._run(sharing_use_cpu, held, row, MAIN_ROOT, tokens, begins)
    if begins:
        pair.cache_model._count_lookup(tokens.tolist(), path)
        follow(pair, random, held, path, row)
        pair.cache_model._unlock(path)
        pair.prefix._run(sharing_unlock_cpu, held, np.array([row], np.int32))
    assert not held.any()
    pair.agree()


def follow(pair: SharingPair, random: Random, held: Any, path: Any, row: int) -> None:
    """The index follows rows of another device: one begins a fork, and is cut or ends."""
    rows = held.size // 2
    for node in path:
        node.locks += 1
    other = (row + 1) % rows
    for kept in (len(path), random.randrange(len(path) + 1), 0):
        before = path[: int(held[other])]
        locks = held.copy()
        locks[other], locks[rows + other] = kept, path[kept - 1].page if kept else 0
        pair.prefix._run(sharing_follow_cpu, held, locks)
        assert (held == locks).all()
        for node in path[:kept] if len(before) != kept else ():
            node.locks += 1
        if len(before) != kept:
            pair.cache_model._unlock(before)
        assert cached(pair.prefix) == cached_model(pair.prefix_model)


def leave(pair: SharingPair, random: Random) -> None:
    """Rows enter the cache as those of another device do before they end."""
    rows = some_rows(pair, random)
    pair.model.step += 1
    released = sum(pair.cache_model._commit(row) for row in rows)
    pair.model.step -= 1
    slabs = pair.pool._slab, pair.cache.tables._slab, pair.prefix._slab
    assert sharing_leave_cpu.run(*slabs, np.array(rows, np.int32)) == released
    pair.agree()


def shown(pair: SharingPair, random: Random) -> None:
    """What a pool of another device is told to free, and how much it could be."""
    insert(pair, random)
    own(pair, random)
    assert pair.prefix._run(reclaim_count_cpu) == pair.cache_model.reclaimable
    available, most = pair.model.available, pair.cache_model.reclaimable
    n, victims = random.randrange(1, most + 3), np.empty(pair.pool.num_pages, np.int32)
    status = pair.prefix._run(reclaim_room_cpu, n, available, victims)
    if n > most:
        assert errors.unpack_status(status) == (errors.OUT_OF_PAGES, available + most)
    else:
        pair.prefix_model._expire()
        assert pair.prefix_model.reclaim(n) == status
        pair.pool.free(victims[:status])
        pair.model.step += 1
    pair.agree()


def clear(pair: SharingPair, random: Random) -> None:
    if random.random() < 0.3:
        pair.do("clear")
    pair.compare(pair.prefix.clear, pair.prefix_model.clear)


def resize(pair: SharingPair, random: Random) -> None:
    pair.call("resize", max(12, min(pair.pool.num_pages + random.choice((-1, 0, 2)), 40)))


def sweep(pair: SharingPair, random: Random) -> None:
    """A new namespace, while those that nobody uses are forgotten."""
    pair.prefix._namespaces.sweep_at = 0
    pair.do(
        "allocate", random.randrange(12), tokens=prompt(pair, random), namespace=random.random()
    )


def restore(pair: SharingPair, random: Random) -> None:
    """What happens to the library alone in between is forgotten."""
    snapshot = pair.cache.snapshot()
    for seq_id in list(pair.cache.ids)[::2]:
        pair.cache.free(seq_id)
    pair.prefix.evict(random.randrange(9))
    pair.cache.restore(snapshot)
    pair.agree()


def rows_with_tokens(pair: SharingPair, random: Random) -> None:
    tokens = prompt(pair, random)
    pair.do("allocate", random.randrange(40), tokens=tokens)


SHARING_STEPS: dict[str, Step] = {
    "batches_open_cpu": allocate_batch,
    "batches_plan_cpu": allocate_batch,
    "upkeep_advance_cpu": advance,
    "prefix_insert_cpu": insert,
    "prefix_lookup_cpu": look,
    "prefix_match_batch_cpu": match_batch,
    "prefix_match_cpu": look_up,
    "prefix_pin_cpu": pin,
    "prefix_release_cpu": look_up,
    "prefix_touch_cpu": touch,
    "prefix_upkeep_check_cpu": allocate,
    "prefix_upkeep_copy_cpu": restore,
    "prefix_upkeep_rename_cpu": defragment,
    "prefix_upkeep_resize_cpu": resize,
    "prefix_upkeep_roots_cpu": sweep,
    "prefix_upkeep_unlock_cpu": restore,
    "reclaim_choose_cpu": choose,
    "reclaim_clear_cpu": clear,
    "reclaim_count_cpu": shown,
    "reclaim_evict_cpu": reclaim,
    "reclaim_invalidate_cpu": invalidate,
    "reclaim_past_cpu": resize,
    "reclaim_room_cpu": shown,
    "rows_allocate_tokens_cpu": rows_with_tokens,
    "sharing_check_cpu": append,
    "sharing_find_cpu": share_elsewhere,
    "sharing_follow_cpu": share_elsewhere,
    "sharing_leave_cpu": leave,
    "sharing_pages_cpu": allocate,
    "sharing_relock_cpu": restore,
    "sharing_room_cpu": room,
    "sharing_unlock_cpu": share_elsewhere,
    "sharing_use_cpu": share_elsewhere,
}
SHARING_BACKGROUND: tuple[Step, ...] = (allocate, allocate, append, commit, free, truncate, look_up)
