"""One random call for each kernel of the sequences, for `test_twins.py`."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np

from jitalloc import NULL, AttentionBatch, InvalidArgument
from tests.cache_pairs import CachePair
from tests.mirror_pairs import Told
from tests.pairs import outcome, plain
from tests.twin_steps import as_argument

Step = Callable[[CachePair, Random], Any]


def some_rows(pair: CachePair, random: Random, distinct: bool = True) -> list[int]:
    """Live rows, sometimes with one that is free, out of range or named before."""
    live = sorted(pair.cache_model.rows)
    size = min(random.choice((0, 1, 2, 5)), len(live))
    rows = random.sample(live, size) if distinct else random.choices(live or [0], k=size)
    if random.random() < 0.2:
        wrong = random.choice([-2, pair.cache_model.max_sequences, *range(8), *rows])
        rows.insert(random.randrange(len(rows) + 1), wrong)
    return rows


def numbers_within(pair: CachePair, random: Random, rows: list[int]) -> list[int]:
    """For each row a number of its tokens, sometimes with one that is none."""
    lengths = [
        pair.cache_model.rows[row].length if row in pair.cache_model.rows else 3 for row in rows
    ]
    numbers = [random.randrange(length + 1) for length in lengths]
    if random.random() < 0.1 and rows:
        numbers[-1] = random.choice((-1, 40))
    return numbers


def an_id(pair: CachePair, random: Random) -> int:
    """The id of a live sequence, mostly."""
    return random.choice([*pair.cache_model.ids, random.randrange(200)])


def allocate(pair: CachePair, random: Random) -> None:
    most = pair.model.page_size * pair.cache_model.max_pages
    tokens = random.choice((0, 1, 5, random.randrange(most + 2)))
    pair.do("allocate", random.randrange(200), min(tokens, 20), priority=random.randrange(3))


def allocate_batch(pair: CachePair, random: Random) -> None:
    """Planned first; then so many of them begin, or one more."""
    most = pair.model.page_size * pair.cache_model.max_pages
    lengths = [random.choice((0, 1, 5, 9, most + 1)) for _ in range(random.randrange(5))]
    indptr = np.cumsum([0, *lengths]).tolist()
    plan = pair.must("plan", range(indptr[-1]), indptr, reserve=random.choice((0, 0, 2)))
    k = min(plan[0] + random.choice((0, 0, 1)), len(lengths))
    free = [seq_id for seq_id in range(200) if seq_id not in pair.cache_model.ids]
    ids = random.sample(free, k) if random.random() < 0.9 else [199] * k
    options: dict[str, Any] = {"ids": ids, "priority": random.randrange(3)}
    pair.do("allocate_batch", range(indptr[k]), indptr[: k + 1], **options)


def free_rows(pair: CachePair, random: Random) -> None:
    pair.do("free_batch", some_rows(pair, random)[:2])


def append(pair: CachePair, random: Random) -> None:
    rows = some_rows(pair, random)
    counts = [random.choice((0, 1, 1, 2, 7)) for _ in rows]
    arguments = as_argument(rows, random, np.int32), as_argument(counts, random, np.int64)
    pair.compare(
        lambda: pair.cache.append_batch(*arguments),
        lambda: pair.cache_model.append_batch(rows, counts),
    )


def room(pair: CachePair, random: Random) -> None:
    """Among few pages that may be taken, so that each that is copied counts."""
    if random.random() < 0.3:
        free_rows(pair, random)
    for _ in range(2):
        fork(pair, random)
    model, size = pair.cache_model, pair.model.page_size
    parts = {row: at.pages[-1] for row, at in model.rows.items() if at.length % size}
    shared = [row for row, page in parts.items() if pair.model.owners[page] > 1]
    random.shuffle(shared)
    rows = random.choice((shared, shared, some_rows(pair, random)))
    counts = [random.choice((0, 1, 1, 1, 2, 9, 30)) for _ in rows]
    if rows and random.random() < 0.1:
        counts[-1] = -1
    n = random.choice((counts, random.randrange(4)))
    few = max(0, pair.model.available - random.randrange(-1, 5))
    pair.do("room_for", rows, n, reserve=random.choice((0, few, few)))


def append_ahead(pair: CachePair, random: Random) -> None:
    rows = some_rows(pair, random)
    counts = [random.choice((0, 1, 1, 2, 7)) for _ in rows]
    pair.do("append_batch", rows, counts, computed=False)


def commit(pair: CachePair, random: Random) -> None:
    pair.do("commit", an_id(pair, random), random.choice((None, random.randrange(12))))


def commit_rows(pair: CachePair, random: Random) -> None:
    rows = some_rows(pair, random)
    pair.do("commit_batch", rows, numbers_within(pair, random, rows))
    pair.do("commit_batch", rows, random.choice((None, random.randrange(3))))


def adopt(pair: CachePair, random: Random) -> None:
    """Pages that the caller takes and gives away, or some that it must not."""
    tokens = [random.randrange(3) for _ in range(random.choice((0, 3, 4, 9, 9, 40)))]
    need, held = -(-len(tokens) // pair.model.page_size), pair.held()
    got = pair.call("alloc", min(need, pair.model.available))
    pages = list(got[1])
    if random.random() < 0.3 and pages:
        free = [page for page, owners in enumerate(pair.model.owners) if not owners]
        odd = [-1, pair.model.num_pages, *range(pair.model.first), *pages, *held, *free[:3]]
        pages[random.randrange(len(pages))] = random.choice(odd)
    if random.random() < 0.1 and tokens:
        tokens[random.randrange(len(tokens))] = -3
    options = {"computed": random.choice((None, random.randrange(10)))}
    pair.do("adopt", random.randrange(200), tokens, pages, priority=1, **options)
    mine = pair.held()
    pair.call("free", [page for page in got[1] if page in mine])


def fork(pair: CachePair, random: Random) -> None:
    at = random.choice((None, random.randrange(12)))
    pair.do("fork", an_id(pair, random), random.randrange(200), at)


def fork_batch(pair: CachePair, random: Random) -> None:
    for _ in range(2):
        pair.do("allocate", random.randrange(200), 0)
    empty = [row for row, at in pair.cache_model.rows.items() if not at.length]
    dst = random.choice((empty, empty, some_rows(pair, random)))
    pair.do("fork_batch", [random.choice([*pair.cache_model.rows, 0]) for _ in dst], dst)


def reorder(pair: CachePair, random: Random) -> None:
    rows = some_rows(pair, random)
    parents = some_rows(pair, random, distinct=False)
    size = min(len(rows), len(parents))
    pair.do("reorder", rows[:size], parents[:size])


def truncate(pair: CachePair, random: Random) -> None:
    pair.do("truncate", an_id(pair, random), random.randrange(12))


def truncate_rows(pair: CachePair, random: Random) -> None:
    rows = some_rows(pair, random)
    numbers = numbers_within(pair, random, rows)
    pair.do("truncate_batch", rows, **{random.choice(("num_tokens", "drop")): numbers})
    pair.do("truncate_batch", rows[:2], drop=random.randrange(2))


def cut_rows(pair: CachePair, random: Random) -> None:
    rule = random.randrange(8), random.randrange(9)
    pair.do("apply_streaming_llm_batch", some_rows(pair, random), *rule)


def cut(pair: CachePair, random: Random) -> None:
    pair.do("apply_streaming_llm", an_id(pair, random), random.randrange(8), random.randrange(9))


def evict(pair: CachePair, random: Random) -> None:
    pair.do(random.choice(("pin", "unpin")), an_id(pair, random))
    pair.do("select_eviction_target")
    pair.do("evict")


def evict_to(pair: CachePair, random: Random) -> None:
    for _ in range(2):
        fork(pair, random)
        pair.do(random.choice(("pin", "unpin")), an_id(pair, random))
    pages = [page for at in pair.cache_model.rows.values() for page in at.pages]
    pair.call("free", [page for page in pair.held() if random.random() < 0.5])
    pair.call("share", random.sample(pages, min(3, len(pages))))
    pair.do("evict_to", random.random())


def layouts(pair: CachePair, random: Random) -> None:
    pair.agree_on_layouts()
    pair.do("block_tables", some_rows(pair, random), width=random.randrange(9))
    pair.do("page_table_csr", some_rows(pair, random, distinct=False))
    pair.do("seq_lens", some_rows(pair, random))
    rows = some_rows(pair, random, distinct=False)
    pair.do("slot_mapping", rows, [random.randrange(-1, 9) for _ in rows])


def attention(pair: CachePair, random: Random) -> None:
    """With buffers of more room than needed, or without; sometimes of int32."""
    rows = some_rows(pair, random, distinct=False)
    lengths = [at.length if (at := pair.cache_model.rows.get(row)) else 3 for row in rows]
    counts = [random.choice((0, min(1, n), n, random.randrange(n + 1))) for n in lengths]
    if random.random() < 0.2 and rows:
        at = random.randrange(len(rows))
        counts[at] = random.choice((-1, lengths[at] + 1, 2**40))
    new = random.choice((as_argument(counts, random, np.int64), random.choice((0, 1))))
    dtype = random.choice((None, np.int32, np.int64))
    pair.compare(
        lambda: pair.cache.attention_batch(as_argument(rows, random, np.int32), new, dtype=dtype),
        lambda: pair.cache_model.attention_batch(rows, new if isinstance(new, int) else counts),
    )
    fill_attention(pair, rows, new, random)


def fill_attention(pair: CachePair, rows: list[int], new: Any, random: Random) -> None:
    """What comes without buffers comes with them too, and what stands behind is filled up."""
    sizes, kind = [random.randrange(40) for _ in range(2)], random.choice((np.int32, np.int64))
    out = attention_buffers(len(rows), *sizes, kind)
    before = plain(out)
    expected = outcome(lambda: pair.cache.attention_batch(rows, new))
    got = outcome(lambda: pair.cache.attention_batch(rows, new, out=out))
    if expected[0] == "returned":
        tokens, pages = (len(expected[1][i]) for i in (1, 4))
        short = [("slots", tokens, sizes[0]), ("kv_indices", pages, sizes[1])]
        for name, needed, size in short:
            if needed > size:
                expected = (InvalidArgument, f"out.{name}", size, None)
                break
        else:
            whole = list(expected[1])
            for i, pad in ((1, 0), (2, NULL)):
                whole[i] = whole[i] + [pad] * (sizes[0] - tokens)
            whole[4] = whole[4] + [NULL] * (sizes[1] - pages)
            expected = ("returned", tuple(whole))
    assert got == expected
    if got[0] != "returned":
        assert plain(out) == before, "a refused call has written"


def attention_buffers(batch: int, tokens: int, pages: int, kind: Any) -> AttentionBatch:
    """Buffers for a batch, full of something else; `kind`: the dtype of positions and slots."""
    places = np.full((2, tokens), 66, kind)
    ends, facts = np.full((2, batch + 1), 66, np.int32), np.full((2, batch), 66, np.int32)
    indices = np.full(pages, 66, np.int32)
    return AttentionBatch(ends[0], places[0], places[1], ends[1], indices, *facts)


def defragment(pair: CachePair, random: Random) -> None:
    pair.call("defragment")


def tell(pair: CachePair, random: Random) -> None:
    """Whoever has been told of changes before is told of those since."""
    told = vars(pair).setdefault("told", Told(pair.cache.tables))
    random.choice((append, truncate, fork, defragment))(pair, random)
    told.tell()


# Every kernel of the sequences and the call that runs it. test_house.py holds this complete.
CACHE_STEPS: dict[str, Step] = {
    "attention_export_cpu": attention,
    "attention_total_cpu": attention,
    "commits_batch_cpu": commit_rows,
    "commits_row_cpu": commit,
    "eviction_select_cpu": evict,
    "eviction_to_cpu": evict_to,
    "eviction_window_batch_cpu": cut_rows,
    "eviction_window_cpu": cut,
    "mirror_pack_cpu": tell,
    "room_count_cpu": room,
    "rows_adopt_cpu": adopt,
    "rows_allocate_cpu": allocate,
    "rows_free_cpu": free_rows,
    "sequences_append_ahead_cpu": append_ahead,
    "sequences_append_cpu": append,
    "sequences_fork_batch_cpu": fork_batch,
    "sequences_fork_cpu": fork,
    "sequences_reorder_cpu": reorder,
    "sequences_truncate_batch_cpu": truncate_rows,
    "sequences_truncate_cpu": truncate,
    "tables_check_cpu": layouts,
    "tables_csr_cpu": layouts,
    "tables_lengths_cpu": layouts,
    "tables_padded_cpu": layouts,
    "tables_rename_cpu": defragment,
    "tables_slots_cpu": layouts,
    "tables_total_cpu": layouts,
    "tables_width_cpu": layouts,
}

BACKGROUND: tuple[Step, ...] = (
    allocate,
    allocate,
    append,
    append,
    commit,
    fork,
    truncate,
    free_rows,
)
