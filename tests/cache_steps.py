"""One random call for each kernel of the sequences, for `test_twins.py`."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np

from tests.cache_pairs import CachePair
from tests.mirror_pairs import Told
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


def fork(pair: CachePair, random: Random) -> None:
    pair.do("fork", an_id(pair, random), random.randrange(200))


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


def defragment(pair: CachePair, random: Random) -> None:
    pair.call("defragment")


def tell(pair: CachePair, random: Random) -> None:
    """Whoever has been told of changes before is told of those since."""
    told = vars(pair).setdefault("told", Told(pair.cache.tables))
    random.choice((append, truncate, fork, defragment))(pair, random)
    told.tell()


# Every kernel of the sequences and the call that runs it. test_house.py holds this complete.
CACHE_STEPS: dict[str, Step] = {
    "commits_batch_cpu": commit_rows,
    "commits_row_cpu": commit,
    "eviction_select_cpu": evict,
    "eviction_to_cpu": evict_to,
    "eviction_window_batch_cpu": cut_rows,
    "eviction_window_cpu": cut,
    "mirror_pack_cpu": tell,
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
