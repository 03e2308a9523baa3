"""Twins of the loops of eviction: one thread runs the CPU's."""

from __future__ import annotations

from jitalloc._cuda import cuda_kernel
from jitalloc._cuda_loops import as_rows, from_cpu
from jitalloc.kernels import eviction as loops
from jitalloc.kernels.cuda.calls import begins
from jitalloc.state import RECORD_SLOTS, RESULT

eviction_window = from_cpu(loops.eviction_window_cpu)
eviction_select = from_cpu(loops.eviction_select_cpu)
eviction_to = from_cpu(loops.eviction_to_cpu)


@cuda_kernel(
    "void(int64[::1], int64[::1], int64[::1], int64[::1], int64, int64, int64, int64)", serial=True
)
def eviction_window_cuda(words, tables, prefix, out, row, sink_tokens, window_tokens, evicted):
    if begins(words):
        pool = words[RECORD_SLOTS:]
        words[RESULT] = eviction_window(
            pool, tables, prefix, out, row, sink_tokens, window_tokens, evicted
        )


@cuda_kernel("void(int64[::1], int64[::1], int64, int64, int64)", serial=True)
def eviction_select_cuda(words, tables, policy, sink_tokens, window_tokens):
    if begins(words):
        words[RESULT] = eviction_select(tables, policy, sink_tokens, window_tokens)


@cuda_kernel(
    "void(int64[::1], int64[::1], int64[::1], int32[::1], int64[::1], int64, int64[::1])",
    serial=True,
)
def eviction_to_cuda(words, tables, prefix, owners, out, target, rule):
    if begins(words):
        victims = as_rows(out, out.size // 3, 3)
        pool = words[RECORD_SLOTS:]
        words[RESULT] = eviction_to(pool, tables, prefix, owners, victims, target, rule)
