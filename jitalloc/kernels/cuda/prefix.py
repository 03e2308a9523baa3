"""Twins of the prefix cache's loops: match, insert, release, pin.

One thread runs each of them. A path is followed link by link, and a match splits runs, moves them
in their queues and pushes them before their siblings: the state has no order but that of the calls
and, within one, of its steps. Threads that shared this work would have to agree on that order, and
two runs of the same calls must leave the same bits. So the loop is the CPU's own.
"""

from __future__ import annotations

from jitalloc._cuda import cuda_kernel
from jitalloc._cuda_loops import from_cpu
from jitalloc.kernels import prefix as cpu
from jitalloc.kernels.cuda.calls import begins
from jitalloc.state import RECORD_SLOTS, RESULT

match = from_cpu(cpu.prefix_match_cpu)
match_batch = from_cpu(cpu.prefix_match_batch_cpu)
release = from_cpu(cpu.prefix_release_cpu)
pin = from_cpu(cpu.prefix_pin_cpu)
insert = from_cpu(cpu.prefix_insert_cpu)


@cuda_kernel("void(int64[::1], int64[::1], int64, int32[::1], int32[::1])", serial=True)
def prefix_match_cuda(words, prefix, root, tokens, record):
    if begins(words):
        words[RESULT] = match(words[RECORD_SLOTS:], prefix, root, tokens, record)


@cuda_kernel(
    "void(int64[::1], int64[::1], int64[::1], int32[::1], int64[::1], int32[::1], int32[::1])",
    serial=True,
)
def prefix_match_batch_cuda(words, prefix, roots, tokens, indptr, records, out):
    if begins(words):
        pool = words[RECORD_SLOTS:]
        words[RESULT] = match_batch(pool, prefix, roots, tokens, indptr, records, out)


@cuda_kernel("void(int64[::1], int64[::1], int32[::1], int64, int64)", serial=True)
def prefix_release_cuda(words, prefix, records, count, held):
    if begins(words):
        words[RESULT] = release(words[RECORD_SLOTS:], prefix, records, count, held)


@cuda_kernel("void(int64[::1], int64[::1], int64, int32[::1], int32[::1])", serial=True)
def prefix_pin_cuda(words, prefix, root, tokens, record):
    if begins(words):
        words[RESULT] = pin(words[RECORD_SLOTS:], prefix, root, tokens, record)


@cuda_kernel(
    "void(int64[::1], int64[::1], int64, int32[::1], int32[::1], int32[::1], int64, int64)",
    serial=True,
)
def prefix_insert_cuda(words, prefix, root, tokens, pages, out, priority, lifetime):
    if begins(words):
        pool = words[RECORD_SLOTS:]
        words[RESULT] = insert(pool, prefix, root, tokens, pages, out, priority, lifetime)
