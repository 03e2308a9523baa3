"""Sequences on the GPU: every call against the model, and word for word against the CPU.

    NUMBA_ENABLE_CUDASIM=1 NUMBA_DISABLE_JIT=1 pytest tests/test_cuda_sequences.py

Skipped without these two, unless there is a GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from jitalloc import InvalidArgument, OutOfPages
from jitalloc.cuda import CudaPagePool
from jitalloc.gpu.record import RECORD_SLOTS
from jitalloc.pool.loops.merging_cuda import VERDICT
from jitalloc.sequences.state import LENGTH
from jitalloc.state import INT32
from tests import cache_steps
from tests.cuda_cache_pairs import Both, CudaCachePair, use_threads
from tests.cuda_cache_steps import CUDA_CACHE_STEPS
from tests.gpu import ON_DEVICE
from tests.test_twins import CACHES, describe

pytestmark = ON_DEVICE
ROUNDS = 12


@pytest.mark.parametrize("options", CACHES, ids=describe)
@pytest.mark.parametrize("name", sorted(CUDA_CACHE_STEPS))
def test_kernel_does_what_the_model_does(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_threads(monkeypatch, 4)
    random, pair = Random(f"{name} {describe(options)}"), CudaCachePair(**options)
    for _ in range(ROUNDS):
        CUDA_CACHE_STEPS[name](pair, random)
        random.choice(cache_steps.BACKGROUND)(pair, random)


@pytest.mark.parametrize("options", CACHES, ids=describe)
@pytest.mark.parametrize("step", [cache_steps.layouts, cache_steps.defragment])
def test_layouts_and_moves(
    step: cache_steps.Step, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_threads(monkeypatch, 4)
    random, pair = Random(describe(options)), CudaCachePair(**options)
    for _ in range(6):
        random.choice(cache_steps.BACKGROUND)(pair, random)
        step(pair, random)


# Word for word against the CPU.


def tokens_of(random: Random, n: int) -> list[int]:
    """Tokens of which many a prompt has the first ones."""
    letters = random.choices("aab", k=n)
    return [ord(letter) * 100 + i // 4 for i, letter in enumerate(sorted(letters))]


def random_call(both: Both, random: Random, shared: bool) -> tuple[Any, ...]:
    """One call, most of them right."""
    live = sorted(both.cpu._ids.rows.values())
    rows = random.sample(live, random.randrange(len(live) + 1))
    if random.random() < 0.1:
        rows.insert(random.randrange(len(rows) + 1), random.choice([-2, 0, 1, 99, *live]))
    seq_id = random.choice([*both.cpu.ids, 99])
    counts = [random.choice((0, 1, 1, 1, 2, 9)) for _ in rows]
    tokens = tokens_of(random, sum(counts)) if shared and random.random() < 0.7 else None
    calls: list[tuple[float, Callable[[], tuple[Any, ...]]]] = [
        (4, lambda: both.do("append_batch", rows, 1, tokens=tokens and tokens[: len(rows)])),
        (4, lambda: both.do("append_batch", rows, counts, tokens=tokens)),
        (1, lambda: both.do("append", seq_id, random.choice((None, 0, 1, 6)))),
        (1, lambda: both.do("room_for", rows, random.choice((1, counts)), reserve=1)),
        (2, lambda: both.do("fork", seq_id, random.randrange(40))),
        (2, lambda: both.do("fork", seq_id, random.randrange(40), random.randrange(9))),
        (1, lambda: both.do("reorder", rows, random.choices([*live, 0], k=len(rows)))),
        (2, lambda: fork_batch(both, random, live)),
        (1, lambda: both.do("truncate", seq_id, random.randrange(9))),
        (1, lambda: both.do("truncate_batch", rows, drop=[min(n, 2) for n in counts])),
        (0.5, lambda: both.do("truncate_batch", rows, random.randrange(3))),
        (0.5, lambda: both.do("apply_streaming_llm_batch", rows, random.randrange(4), 5)),
        (1, lambda: both.do("free", seq_id)),
        (0.5, lambda: both.do("free_batch", rows[:2])),
        (1, lambda: both.do("apply_streaming_llm", seq_id, random.randrange(4), 5)),
        (0.5, lambda: both.do("evict")),
        (0.3, lambda: both.do("evict_to", random.random())),
        (0.3, lambda: both.do("stats")),
        (4, lambda: both.do("allocate", random.randrange(40), random.randrange(15))),
    ]
    if shared:
        prompt = tokens_of(random, random.randrange(20))
        space = random.choice((None, None, "other"))
        new = random.randrange(40)
        calls += [
            (4, lambda: both.do("allocate", new, tokens=prompt, namespace=space)),
            (3, lambda: both.do("commit", seq_id)),
        ]
    (call,) = random.choices([call for _, call in calls], weights=[weight for weight, _ in calls])
    return call()


def fork_batch(both: Both, random: Random, live: list[int]) -> tuple[Any, ...]:
    for _ in range(2):
        both.do("allocate", random.randrange(40), 0)
    length = both.cpu.tables.arrays.columns[LENGTH]
    empty = [row for row in both.cpu._ids.rows.values() if not length[row]]
    dst = random.choice((empty, empty, live[:2]))
    return both.do("fork_batch", random.choices([*live, 0], k=len(dst)), dst)


POOLS = [
    {"num_pages": 60, "page_size": 4},
    {"num_pages": 60, "page_size": 3, "order": "fifo", "null_page": True},
    {"num_pages": 70, "page_size": 1, "order": "lifo"},
]


@pytest.mark.parametrize(("threads", "calls"), [(4, 150), (8, 150), (32, 50), (64, 20)])
@pytest.mark.parametrize("pool", POOLS, ids=describe)
def test_random_calls(
    pool: dict[str, Any], threads: int, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In blocks of a warp that is not whole, of one warp, and of two."""
    use_threads(monkeypatch, threads)
    both, random = Both(pool, 9, 12), Random(f"{describe(pool)} {threads}")
    done = Counter(random_call(both, random, False)[0] for _ in range(calls))
    assert done["returned"] > sum(done.values()) / 3
    both.device.check(held=[])


@pytest.mark.parametrize("pool", POOLS, ids=describe)
def test_random_calls_behind_a_prefix_cache(pool: dict[str, Any]) -> None:
    both, random = Both(pool, 9, 12, {"policy": "lru"}), Random(describe(pool))
    done = Counter(random_call(both, random, True)[0] for _ in range(250))
    assert done["returned"] > sum(done.values()) / 3
    assert both.prefix.num_cached > 0
    both.device.check(held=[])


@pytest.mark.parametrize("threads", [2, 5])
def test_random_calls_with_other_blocks_at_hand_to_merge(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a large pool: where a merge is due, all blocks do it, and the last does the call."""
    monkeypatch.setattr(CudaPagePool, "_mergers", lambda _pool: 4)
    use_threads(monkeypatch, threads)
    both, random = Both({"num_pages": 30, "page_size": 4}, 9, 12), Random(threads)
    for _ in range(150):
        random_call(both, random, False)
        words = both.gpu.gpu.download(both.gpu_pool._words)
        scratch = words[RECORD_SLOTS + both.cpu_pool._slab.size :]
        assert not scratch[:VERDICT].any(), "the parts of a merge are left over"
    assert both.cpu_pool.stats().merges > 3
    both.device.check(held=[])


def test_a_thousand_steps_of_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    use_threads(monkeypatch, 3)
    both, random = Both({"num_pages": 40, "page_size": 4}, 6, 20), Random(3)
    for step in range(1000):
        if step % 7 == 0 and len(both.cpu) < 6:
            both.do("allocate", step, random.randrange(1, 12))
        short = both.do("append_batch", sorted(both.cpu._ids.rows.values()), 1)[0] != "returned"
        if short or (len(both.cpu) > 1 and random.random() < 0.05):
            both.must("free", random.choice(both.cpu.ids))
    both.device.check(held=[])


@pytest.mark.parametrize("n", [1, 6])
@pytest.mark.parametrize("threads", [1, 4, 8])
def test_sharers_of_a_last_page_copy_it_in_turn(
    n: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beams of several sequences, some of which stay out of the batch, in any order."""
    use_threads(monkeypatch, threads)
    for order in ("sorted", "fifo", "lifo"):
        both, random = Both({"num_pages": 90, "page_size": 4, "order": order}, 30, 20), Random(n)
        for group in range(3):
            both.must("allocate", (group, 0), 4 * group + 1 + group)
            for beam in range(1, 6):
                both.must("fork", (group, 0), (group, beam))
        held = both.cpu.tables.arrays.pages[0, :1].copy()
        both.cpu_pool.share(held)
        both.gpu_pool.share(both.gpu.up(held, INT32))
        assert both.do("append_batch", [*range(18)], 35)[0] is OutOfPages  # shares come back
        copies = 0
        for _ in range(3):
            rows = random.sample(range(18), 14)
            copies += len(both.must("append_batch", rows, n)[1][0])
        assert copies > 12
        both.device.check(held=held)


# Errors.

FAULTS: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    "grown too long": ("append_batch", ([1, 0], [1, 30]), {}),
    "grown past the pool": ("append_batch", ([0, 1], [20, 25]), {}),
    "grown past the pool and int32": ("append_batch", ([0, 1], 2**30), {}),
    "one negative growth": ("append_batch", ([0, 1, 2], [1, -1, -5]), {}),
    "growth past int32": ("append_batch", ([0, 1], [2**31 - 2, 5]), {}),
    "growths past int32": ("append_batch", ([0, 1], 2**31 - 1), {}),
    "growths differ": ("append_batch", ([0, 1], [1]), {}),
    "negative number": ("append_batch", ([0, 1], -1), {}),
    "float": ("append_batch", ([0, 1], 1.0), {}),
    "row out of range": ("append_batch", ([0, 4],), {}),
    "row below": ("append_batch", ([0, -7], [1, 1]), {}),
    "row of nobody": ("append_batch", ([0, 3],), {}),
    "row twice": ("append_batch", ([0, 2, 1, 0, 2],), {}),
    "row twice before a free one": ("append_batch", ([0, 0, 3],), {}),
    "row of nobody before one twice": ("append_batch", ([0, 3, 0],), {}),
    "bad counts before bad rows": ("append_batch", ([9, 0], [1, -1]), {}),
    "bad rows before bad tokens": ("append_batch", ([0, 9], [1, 1]), {"tokens": [-1, 1]}),
    "bad tokens before width": ("append_batch", ([0, 1], [30, 1]), {"tokens": [*range(30), -1]}),
    "tokens too few": ("append_batch", ([0, 1], [1, 1]), {"tokens": [5]}),
    "tokens too many": ("append_batch", ([0, 1], 1), {"tokens": [5, 6, 7]}),
    "tokens too few and rows": ("append_batch", ([0, 9], [1, 1]), {"tokens": [5]}),
    "more kept than there are": ("truncate_batch", ([0, 1], [6, 4]), {}),
    "more dropped than there are": ("truncate_batch", ([0, 1, 2],), {"drop": [6, 4, 1]}),
    "fewer than none kept": ("truncate_batch", ([0, 1, 2], [6, -1, 1]), {}),
    "fewer than none dropped": ("truncate_batch", ([0, 1],), {"drop": [0, -3]}),
    "fewer than none kept of all": ("truncate_batch", ([0, 1], -1), {}),
    "kept of all": ("truncate_batch", ([0, 1], 4), {}),
    "truncations differ": ("truncate_batch", ([0, 1], [1]), {}),
    "kept and dropped": ("truncate_batch", ([0, 1], 1), {"drop": 1}),
    "neither kept nor dropped": ("truncate_batch", ([0, 1],), {}),
    "bad rows before bad numbers": ("truncate_batch", ([0, 3], [-1, 0]), {}),
    "truncation of a row twice": ("truncate_batch", ([0, 1, 0], 1), {}),
    "window of a row twice": ("apply_streaming_llm_batch", ([0, 1, 0], 1, 1), {}),
    "window of nobody": ("apply_streaming_llm_batch", ([0, 3], 1, 1), {}),
    "window below none": ("apply_streaming_llm_batch", ([0], 1, -1), {}),
    "fork onto tokens": ("fork_batch", ([0, 0], [2, 1]), {}),
    "fork of nobody": ("fork_batch", ([0, 3], [2, 4]), {}),
    "fork of a row outside": ("fork_batch", ([9], [2]), {}),
    "fork onto a row twice": ("fork_batch", ([0, 0], [2, 2]), {}),
    "fork onto nobody": ("fork_batch", ([0], [3]), {}),
    "fork lengths differ": ("fork_batch", ([0, 0], [2]), {}),
    "no parent": ("reorder", ([0, 1], [0, -1]), {}),
    "parent of nobody": ("reorder", ([0, 1], [3, 9]), {}),
    "reorder of a row twice": ("reorder", ([0, 1, 0], [0, 1, 9]), {}),
    "reorder of nobody": ("reorder", ([3], [0]), {}),
    "parents differ": ("reorder", ([0, 1], [0]), {}),
    "more rows than there are": ("reorder", ([0, 1] * 9, [0] * 18), {}),
    "unknown id": ("append", ("x",), {}),
    "grown too long by id": ("append", ("a", 30), {}),
    "grown past the pool by id": ("append", ("c", 32), {}),
    "negative tokens": ("append", ("a",), {"tokens": [3, -4]}),
    "too long": ("allocate", ("x", 33), {}),
    "past the pool": ("allocate", ("x", 32), {}),
    "negative token": ("allocate", ("x",), {"tokens": [1, -1]}),
    "duplicate id": ("allocate", ("a", 1), {}),
    "fork of an unknown one": ("fork", ("x", "y"), {}),
    "adopted page named twice": ("adopt", ("x", [1] * 5, [1, 1]), {}),
    "adopted page outside": ("adopt", ("x", [1] * 5, [1, 10]), {}),
    "adopted page below": ("adopt", ("x", [1] * 5, [1, -1]), {}),
    "adopted page free": ("adopt", ("x", [1] * 5, [8, 9]), {}),
    "adopted pages too few": ("adopt", ("x", [1] * 5, [1]), {}),
    "adopted tokens too many": ("adopt", ("x", [1] * 33, [*range(9)]), {}),
    "adopted negative token": ("adopt", ("x", [1, 1, -9], [1]), {}),
    "adopted as computed": ("adopt", ("x", [1], [1]), {"computed": 2}),
    "fork behind the end": ("fork", ("a", "x", 7), {}),
    "fork below none": ("fork", ("a", "x", -1), {}),
    "row of nobody freed": ("free_batch", ([0, 3],), {}),
    "row freed twice": ("free_batch", ([0, 0],), {}),
    "grown by truncate": ("truncate", ("a", 7), {}),
    "more computed than there is": ("commit", ("a", 7), {}),
    "more told than there is": ("commit", ("a", 2), {"tokens": [1] * 7}),
    "negative token told": ("commit", ("a",), {"tokens": [1, -5]}),
    "commit of nobody": ("commit", ("x",), {}),
    "more computed than one has": ("commit_batch", ([0, 1], [6, 4]), {}),
    "fewer than none computed": ("commit_batch", ([0, 1, 2], [6, -1, 1]), {}),
    "fewer than none computed of all": ("commit_batch", ([0, 1], -1), {}),
    "computed of all": ("commit_batch", ([0, 1], 4), {}),
    "commits differ": ("commit_batch", ([0, 1], [1]), {}),
    "bad rows before bad computed": ("commit_batch", ([0, 3], [-1, 0]), {}),
    "commit of a row twice": ("commit_batch", ([0, 1, 0],), {}),
    "commit of a row of nobody": ("commit_batch", ([0, 3],), {}),
    "computed or not": ("append_batch", ([0],), {"computed": 1}),
    "pinned": ("evict", ("b",), {}),
}


@pytest.mark.parametrize("prefix", [None, {}], ids=["alone", "behind a prefix cache"])
@pytest.mark.parametrize("name", FAULTS)
def test_what_fails_is_told_as_on_the_cpu_and_changes_nothing(
    name: str, prefix: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_threads(monkeypatch, 3)
    both = Both({"num_pages": 10, "page_size": 4}, 4, 8, prefix)
    for seq_id, tokens in (("a", 6), ("b", 3), ("c", 0)):
        both.must("allocate", seq_id, tokens)
    both.must("fork", "a", "d")
    both.must("free_batch", [3])
    both.must("pin", "b")
    before = both.cpu.tables._slab.copy(), both.cpu_pool._slab.copy()
    call, args, options = FAULTS[name]
    got = both.do(call, *args, **options)
    assert got[0] != "returned"
    assert (both.cpu.tables._slab == before[0]).all()
    assert (both.cpu_pool._slab == before[1]).all()


def test_a_page_never_gets_more_owners_than_int32_holds() -> None:
    both = Both({"num_pages": 10, "page_size": 4}, 5, 8)
    for seq_id, tokens in (("a", 6), ("b", 0), ("c", 0), ("d", 2)):
        both.must("allocate", seq_id, tokens)

    def own(count: int) -> None:
        both.device.pool.arrays.refcount[1] = both.cpu_pool.arrays.refcount[1] = count

    own(2**31 - 2)  # each call must leave room for as many owners as its batch has rows
    assert both.do("fork_batch", [3, 0], [1, 2])[0] is InvalidArgument
    assert both.do("reorder", [3, 1], [3, 0])[0] is InvalidArgument
    both.must("fork_batch", [0], [1])
    assert both.cpu_pool.arrays.refcount[1] == 2**31 - 1
    assert both.do("fork_batch", [0], [2])[0] is InvalidArgument
    assert both.do("reorder", [3], [0])[0] is InvalidArgument
    assert both.do("fork", "a", "x")[0] is InvalidArgument


def test_more_new_tokens_than_int32_holds() -> None:
    both = Both({"num_pages": 10, "page_size": 2**30}, 4, 4)
    for seq_id in range(3):
        both.must("allocate", seq_id, 0)
    got = both.do("append_batch", [0, 1, 2], [2**30] * 3)
    assert (got[0], got[2]["argument"], got[2]["position"]) == (InvalidArgument, "n", 1)
