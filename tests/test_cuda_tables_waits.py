"""No export on the GPU waits for it where a size is given, and each is one launch."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jitalloc import NULL, AttentionBatch, PagedKVCache, PagePool, PageTableCSR
from jitalloc.sequences.tables_cuda import CudaBlockTables
from tests.cache_steps import attention_buffers
from tests.gpu import RECORDED
from tests.recording import RecordingDevice

pytestmark = RECORDED


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Tables with sequences of 5 and 8 tokens, arrays to call them with, and what was noted."""
    gpu = RecordingDevice()
    monkeypatch.setattr("jitalloc.gpu.slab.device", lambda: gpu)
    cpu = PagedKVCache(PagePool(8, 4), 4, 4)
    cpu.allocate("a", 5)
    cpu.allocate("b", 8)
    pool: Any = PagePool(8, 4, device="cuda")
    tables = CudaBlockTables(pool, 4, 4, NULL)
    tables._install(cpu.tables._slab)

    def up(values: Any, dtype: Any = np.int32) -> Any:
        return gpu.upload(np.array(values, dtype))

    made = SimpleNamespace(
        gpu=gpu,
        pool=pool,
        tables=tables,
        rows=up([1, 0, 1]),
        wrong=up([0, 3, 1]),
        positions=up([0, 4, 7], np.int64),
        slots=up([0, 0, 0], np.int64),
        table=up(np.zeros((3, 4))),
        csr=PageTableCSR(up([0] * 4), up([0] * 99), up([0] * 3)),
        lengths=up([0, 0, 0]),
        attention=AttentionBatch(
            *(up(each, each.dtype) for each in attention_buffers(3, 9, 99, np.int64))
        ),
        names=up(range(8)),
    )
    gpu.waits.clear()
    gpu.starts.clear()
    return made


CALLS: dict[str, Callable[[Any], Any]] = {
    "block_tables": lambda at: at.tables.block_tables(at.rows, out=at.table),
    "block_tables of a width": lambda at: at.tables.block_tables(at.rows, width=2),
    "block_tables that fails": lambda at: at.tables.block_tables(at.rows, width=1),
    "slot_mapping": lambda at: at.tables.slot_mapping(at.rows, at.positions, out=at.slots),
    "slot_mapping, no buffer": lambda at: at.tables.slot_mapping(at.rows, at.positions),
    "page_table_csr": lambda at: at.tables.page_table_csr(at.rows, out=at.csr),
    "page_table_csr that fails": lambda at: at.tables.page_table_csr(at.wrong, out=at.csr),
    "attention_batch": lambda at: at.tables.attention_batch(at.rows, 1, out=at.attention),
    "attention_batch of each": lambda at: at.tables.attention_batch(
        at.rows, at.lengths, out=at.attention
    ),
    "attention_batch that fails": lambda at: at.tables.attention_batch(
        at.rows, 9, out=at.attention
    ),
    "seq_lens": lambda at: at.tables.seq_lens(at.rows, out=at.lengths),
    "seq_lens, no buffer": lambda at: at.tables.seq_lens(at.rows),
    "_rename": lambda at: at.tables._rename(at.names),
}


@pytest.mark.parametrize("name", CALLS)
def test_an_export_is_one_launch_and_waits_for_nothing(at: SimpleNamespace, name: str) -> None:
    CALLS[name](at)
    assert at.gpu.waits == []
    assert len(at.gpu.starts) == 1


def test_an_export_of_unknown_size_asks_for_it_first(at: SimpleNamespace) -> None:
    at.tables.block_tables(at.rows)
    assert at.gpu.starts == ["tables_width_cuda", "tables_padded_cuda"]
    at.gpu.starts.clear()
    at.tables.page_table_csr(at.rows)
    assert at.gpu.starts == ["tables_total_cuda", "tables_csr_cuda"]
    at.gpu.starts.clear()
    at.tables.attention_batch(at.rows, 2)
    assert at.gpu.starts == ["attention_total_cuda", "attention_export_cuda"]
    assert set(at.gpu.waits) == {"download"}


def test_arrays_of_the_tables_are_wrapped_once(
    at: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapped: list[int] = []
    wrap = at.gpu.wrap
    monkeypatch.setattr(at.gpu, "wrap", lambda values: wrapped.append(values.size) or wrap(values))
    at.tables.seq_lens(at.rows, out=at.lengths)
    assert wrapped == [3, 3]


def test_every_export_is_recorded() -> None:
    launched = {name.partition(",")[0].partition(" ")[0] for name in CALLS}
    mine = {name for name, each in vars(CudaBlockTables).items() if callable(each)}
    inside = {"__init__", "_install", "_copy_on_cpu", "_start", "_start_attention"}
    inside |= {"_number", "_numbers", "__reduce_ex__"}
    assert mine - inside == launched
