"""Twins of the loops under a slot prefix cache.

All loops of that cache follow links from entry to entry, so one thread of the GPU runs them, from
the source that the CPU runs.
"""

from __future__ import annotations

from jitalloc._cuda import cuda_kernel
from jitalloc._cuda_loops import from_cpu
from jitalloc.kernels import slot_table
from jitalloc.kernels.cuda.calls import begins
from jitalloc.state import RECORD_SLOTS, RESULT

slot_table_look = from_cpu(slot_table.slot_table_look_cpu)
slot_table_clear = from_cpu(slot_table.slot_table_clear_cpu)


@cuda_kernel("void(int64[::1], int64, int64[::1])", serial=True)
def slot_table_look_cuda(words, slot, out):
    if begins(words):
        words[RESULT] = slot_table_look(words[RECORD_SLOTS:], slot, out)


@cuda_kernel("void(int64[::1], int32[::1])", serial=True)
def slot_table_clear_cuda(words, slots):
    if begins(words):
        words[RESULT] = slot_table_clear(words[RECORD_SLOTS:], slots)
