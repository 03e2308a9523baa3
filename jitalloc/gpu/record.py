"""The record of a part on the GPU: what its calls leave for the host, in an array of its own."""

from __future__ import annotations

from typing import Final

TICKET: Final = 0  # blocks of the call that are done; 0 between calls
CALLS: Final = 1  # calls so far
FAULT_STATUS: Final = 2  # status word of the first call that failed, or 0
FAULT_CALL: Final = 3  # how many calls came before it
FAULT_KIND: Final = 4  # which of CALL_KINDS it was
FAULT_VALUE: Final = 5  # the offending element, or the pages available where a run was asked for
FAULT_WANTED: Final = 6  # pages or elements that the call needed
RESULT: Final = 7  # what the loop returned that the host waits for
LOWEST: Final = 8  # of a call in several blocks: `call_min` in gpu/scan.py; else 0
ANSWER: Final = 13  # of a call on sequences by id: a result or status word, and a word more
ROWS_FREED: Final = 15  # sequences that have ended: ids on the host follow where it has changed
RECORD_SLOTS: Final = 16  # a cache line, so that the slab behind it begins one
CALL_KINDS: Final = (
    "alloc",
    "alloc_run",
    "alloc_batch",
    "admit",
    "merge",
    "share",
    "free",
    "free_slots",
    "refcount",
    "alloc_extend",
    "alloc_decode",
    "clear",
    "resize",
    "defragment",
    "block_tables",
    "slot_mapping",
    "page_table_csr",
    "seq_lens",
    "append_batch",
    "fork_batch",
    "reorder",
    "free_batch",
    "truncate_batch",
    "apply_streaming_llm_batch",
    "allocate_batch",
    "attention_batch",
    "room_for",
    "commit_batch",
)
