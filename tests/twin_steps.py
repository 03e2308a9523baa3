"""One random call for each kernel of the pool, right and wrong ones, for `test_twins.py`."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np

from jitalloc import forking
from jitalloc.gpu import kernel as _cuda
from jitalloc.state import FORKING, LOCK
from tests.pairs import PoolPair

Step = Callable[[PoolPair, Random], Any]


def some_ids(pair: PoolPair, random: Random) -> list[int]:
    """Ids to free: held pages, sometimes in runs, sometimes with one that is wrong."""
    held = pair.held()
    if random.random() < 0.3:
        random.shuffle(held)
    first = random.randrange(len(held) + 1)
    ids = held[first : first + random.choice((1, 3, 70, 400))]
    if random.random() < 0.25:
        anywhere = random.randrange(-2, pair.model.num_pages + 2)
        ids.insert(random.randrange(len(ids) + 1), random.choice([anywhere, *ids]))
    return ids


def as_argument(values: list[int], random: Random, dtype: type[np.integer[Any]]) -> Any:
    """The values as a caller may hand them in: an array, every second of one, a list."""
    shape = random.randrange(3)
    if shape == 0:
        return values
    if shape == 1:
        return np.array(values, dtype)
    return np.repeat(np.array(values, dtype), 2)[::2]


def a_dtype(values: list[int], random: Random) -> type[np.integer[Any]]:
    """A dtype of lengths that holds the values: kernels read them as they are, or converted."""
    fits = all(abs(value) < 2**31 for value in values)
    return random.choice((np.int32, np.int64)) if fits else np.int64


def a_count(pair: PoolPair, random: Random) -> int:
    most = pair.model.available + 1
    return random.choice((0, 1, min(3, most), random.randrange(most + 1)))


def alloc(pair: PoolPair, random: Random) -> None:
    pair.call("alloc", a_count(pair, random))


def alloc_run(pair: PoolPair, random: Random) -> None:
    longest = pair.model.longest_run()
    count = random.choice((0, 1, longest, longest + 1, a_count(pair, random)))
    if count <= pair.model.num_pages:
        pair.call("alloc", count, contiguous=True)


def counts(pair: PoolPair, random: Random) -> list[int]:
    made = [random.choice((0, 1, 2, 5)) for _ in range(random.randrange(6))]
    if made and random.random() < 0.1:
        made[random.randrange(len(made))] = -1
    return made


def alloc_batch(pair: PoolPair, random: Random) -> None:
    pair.call("alloc_batch", counts(pair, random))


def admit(pair: PoolPair, random: Random) -> None:
    pair.call("admit", counts(pair, random))


def merge(pair: PoolPair, random: Random) -> None:
    pair.call("merge")


def share(pair: PoolPair, random: Random) -> None:
    ids = some_ids(pair, random)
    pair.compare(
        lambda: pair.pool.share(as_argument(ids, random, np.int32)), lambda: pair.model.share(ids)
    )


def free(pair: PoolPair, random: Random) -> None:
    ids = some_ids(pair, random)
    if random.random() < 0.2:
        pair.free_group([ids[:2], ids[2:2], ids[2:]])
    else:
        pair.compare(
            lambda: pair.pool.free(as_argument(ids, random, np.int32)), lambda: pair.model.free(ids)
        )


def refcount(pair: PoolPair, random: Random) -> None:
    pages = pair.model.num_pages
    ids = [random.randrange(-1, pages + 1) for _ in range(random.randrange(4))]
    pair.call("refcount", ids)


def free_slots(pair: PoolPair, random: Random) -> None:
    size = pair.model.page_size
    slots = []
    for page in some_ids(pair, random)[:20]:
        whole = [page * size + offset for offset in range(size)]
        slots += random.choice((whole, whole[:1], whole[-1:], whole[::-1]))
    pair.compare(
        lambda: pair.pool.free_slots(as_argument(slots, random, np.int64)),
        lambda: pair.model.free_slots(slots),
    )


def a_prompt(pair: PoolPair, random: Random, new: float = 0.3) -> tuple[int, int]:
    """How many tokens a sequence has, and the slot of the last of them."""
    size, held = pair.model.page_size, pair.held()
    if not held or random.random() < new:
        return 0, -1
    tokens = random.randrange(1, 4 * size + 1)
    return tokens, random.choice(held) * size + (tokens - 1) % size


def into_a_free_page(last_slots: list[int], pair: PoolPair, random: Random) -> None:
    """Sometimes let one of the slots lie in a page that nobody holds."""
    if last_slots and last_slots[-1] >= 0 and pair.model.free_list and random.random() < 0.3:
        size = pair.model.page_size
        last_slots[-1] = random.choice(pair.model.free_list) * size + last_slots[-1] % size


def spoil(values: list[int], pair: PoolPair, random: Random) -> None:
    if values and random.random() < 0.1:
        slots = pair.model.num_pages * pair.model.page_size
        values[random.randrange(len(values))] = random.choice((-2, -1, 0, 1, 2, slots - 1, slots))


def extend(pair: PoolPair, random: Random) -> None:
    batch = [a_prompt(pair, random) for _ in range(random.randrange(6))]
    prefix_lens = [tokens for tokens, _ in batch]
    last_slots = [last for _, last in batch]
    most = random.choice((1, 3, 40))
    seq_lens = [tokens + random.randrange(most + 1) for tokens in prefix_lens]
    for values in (prefix_lens, seq_lens, last_slots):
        spoil(values, pair, random)
    into_a_free_page(last_slots, pair, random)
    arguments = [as_argument(each, random, np.int64) for each in (prefix_lens, seq_lens)]
    pair.compare(
        lambda: pair.pool.alloc_extend(*arguments, last_slots),
        lambda: pair.model.alloc_extend(prefix_lens, seq_lens, last_slots),
    )


def decode(pair: PoolPair, random: Random) -> None:
    new = random.choice((0, 0.3))
    batch = [a_prompt(pair, random, new) for _ in range(random.choice((0, 1, 5, 20)))]
    seq_lens = [tokens + 1 for tokens, _ in batch]
    last_slots = [last for _, last in batch]
    spoil(seq_lens, pair, random)
    spoil(last_slots, pair, random)
    into_a_free_page(last_slots, pair, random)
    # Writing the slots over those before is what a decoding loop does.
    last = np.array(last_slots, np.int64)
    dtype = a_dtype(seq_lens, random)
    out = last if random.random() < 0.5 else None
    got = pair.compare(
        lambda: pair.pool.alloc_decode(as_argument(seq_lens, random, dtype), last, out=out),
        lambda: pair.model.alloc_decode(seq_lens, last_slots),
    )
    assert out is None or got[0] == "returned" or last.tolist() == last_slots


def figures(pair: PoolPair, random: Random) -> None:
    pair.agree_on_figures()


def clear(pair: PoolPair, random: Random) -> None:
    pair.call("free", pair.held()[:3])
    pair.call("clear")


def resize(pair: PoolPair, random: Random) -> None:
    pages = pair.model.num_pages
    last_used = max([pair.model.first, *pair.held()])
    to = random.choice((pages, last_used + 1, last_used, pages + 1, pages + 64, pages - 1))
    pair.call("resize", min(to, 400))


def defragment(pair: PoolPair, random: Random) -> None:
    pair.call("defragment")


def restore(pair: PoolPair, random: Random) -> None:
    """Go on from a copy of now, whatever happens in between."""
    snapshot = pair.pool.snapshot()
    pair.pool.alloc(pair.pool.available)
    pair.pool.clear()
    pair.pool.restore(snapshot)
    pair.agree()


def fork(pair: PoolPair, random: Random) -> None:
    """Stand still, as at a fork, and go on."""
    forking._before()
    taken = pair.pool._slab[LOCK]
    forking._after()
    assert (taken, pair.pool._slab[LOCK]) == (FORKING, 0)
    pair.agree()


# Every kernel of the pool and the call that runs it. test_house.py holds this complete.
POOL_STEPS: dict[str, Step] = {
    "forking_hold_cpu": fork,
    "owners_count_cpu": refcount,
    "owners_free_cpu": free,
    "owners_free_slots_cpu": free_slots,
    "owners_share_cpu": share,
    "pool_admit_cpu": admit,
    "pool_alloc_batch_cpu": alloc_batch,
    "pool_alloc_cpu": alloc,
    "pool_alloc_run_cpu": alloc_run,
    "pool_merge_cpu": merge,
    "pool_total_cpu": alloc_batch,
    "tokens_decode_cpu": decode,
    "tokens_decode_narrow_cpu": decode,
    "tokens_extend_cpu": extend,
    "tokens_total_cpu": extend,
    "upkeep_check_cpu": figures,
    "upkeep_clear_cpu": clear,
    "upkeep_copy_cpu": restore,
    "upkeep_defragment_cpu": defragment,
    "upkeep_resize_cpu": resize,
    "upkeep_retire_cpu": restore,
    "upkeep_stats_cpu": figures,
    "upkeep_unlock_cpu": defragment,
}

BACKGROUND: tuple[Step, ...] = (alloc, alloc, free, share, merge, free_slots, extend)


def steps_of_twins(steps: dict[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """The step of each kernel of the GPU whose twin is among those that have `steps`."""
    return {
        name: steps[kernel.twin.name]
        for name, kernel in _cuda.cuda_kernels().items()
        if kernel.twin is not None and kernel.twin.name in steps
    }
