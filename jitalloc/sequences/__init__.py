"""Requests on a pool: block tables, growth, copy-on-write, who gives way.

`state` layout and invariants, `records` what is answered, `tables` the arrays and their exports,
`attention` what one attention call reads,
`ids` which row is whose, `rows` single rows with or without a prefix cache, `batches` prompts that
come together, `eviction` who goes next, `upkeep`, `check` and `files` the thing as a whole,
`sequences` what it does, `mirror` tables of the host on the GPU; `*_cuda` the same on a pool of the
GPU.
"""

from jitalloc.sequences.attention import AttentionBatch
from jitalloc.sequences.batches import Allocated, Plan
from jitalloc.sequences.eviction import Eviction
from jitalloc.sequences.files import CacheSnapshot
from jitalloc.sequences.mirror import BlockTableMirror
from jitalloc.sequences.records import SequenceInfo, SequenceStats
from jitalloc.sequences.sequences import Appended, PagedKVCache
from jitalloc.sequences.tables import BlockTables, PageTableCSR

__all__ = [
    "Allocated",
    "Appended",
    "AttentionBatch",
    "BlockTableMirror",
    "BlockTables",
    "CacheSnapshot",
    "Eviction",
    "PageTableCSR",
    "PagedKVCache",
    "Plan",
    "SequenceInfo",
    "SequenceStats",
]
