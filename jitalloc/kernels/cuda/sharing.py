"""Twins of the loops of sequences that share cached pages: one thread runs the CPU's."""

from __future__ import annotations

from jitalloc._cuda import cuda_kernel
from jitalloc._cuda_loops import from_cpu
from jitalloc.kernels import sharing as loops
from jitalloc.kernels.cuda.calls import begins
from jitalloc.state import RECORD_SLOTS, RESULT

sharing_commit = from_cpu(loops.sharing_commit_cpu)
sharing_pages = from_cpu(loops.sharing_pages_cpu)
sharing_relock = from_cpu(loops.sharing_relock_cpu)


@cuda_kernel("void(int64[::1], int64[::1], int64[::1], int64, int32[::1])", serial=True)
def sharing_commit_cuda(words, tables, prefix, row, tokens):
    if begins(words):
        words[RESULT] = sharing_commit(words[RECORD_SLOTS:], tables, prefix, row, tokens)


@cuda_kernel("void(int64[::1], int64[::1], int64[::1])", serial=True)
def sharing_pages_cuda(words, prefix, out):
    if begins(words):
        words[RESULT] = sharing_pages(words[RECORD_SLOTS:], prefix, out)


@cuda_kernel("void(int64[::1], int64[::1], int64[::1])", serial=True)
def sharing_relock_cuda(words, tables, prefix):
    if begins(words):
        words[RESULT] = sharing_relock(tables, prefix)
