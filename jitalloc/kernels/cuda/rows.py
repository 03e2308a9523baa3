"""Twins of the loops over rows that sequences live in: one thread runs the CPU's."""

from __future__ import annotations

from jitalloc._cuda import cuda_kernel
from jitalloc._cuda_loops import from_cpu
from jitalloc.kernels import rows as loops
from jitalloc.kernels.cuda.calls import begins
from jitalloc.state import RECORD_SLOTS, RESULT

rows_allocate = from_cpu(loops.rows_allocate_cpu)
rows_allocate_tokens = from_cpu(loops.rows_allocate_tokens_cpu)
rows_free = from_cpu(loops.rows_free_cpu)


@cuda_kernel("void(int64[::1], int64[::1], int64[::1], int64, int64, int64)", serial=True)
def rows_allocate_cuda(words, tables, prefix, num_tokens, namespace, priority):
    if begins(words):
        pool = words[RECORD_SLOTS:]
        words[RESULT] = rows_allocate(pool, tables, prefix, num_tokens, namespace, priority)


@cuda_kernel("void(int64[::1], int64[::1], int64[::1], int32[::1], int64, int64)", serial=True)
def rows_allocate_tokens_cuda(words, tables, prefix, tokens, namespace, priority):
    if begins(words):
        pool = words[RECORD_SLOTS:]
        words[RESULT] = rows_allocate_tokens(pool, tables, prefix, tokens, namespace, priority)


@cuda_kernel("void(int64[::1], int64[::1], int64[::1], int32[::1], int64, int64)", serial=True)
def rows_free_cuda(words, tables, prefix, rows, commit, evicted):
    if begins(words):
        pool = words[RECORD_SLOTS:]
        words[RESULT] = rows_free(pool, tables, prefix, rows, commit, evicted)
