"""Twins of the loops that take pages back from the prefix cache: evict, clear.

One thread runs each of them: which page gives way next is known only once the last one has.
"""

from __future__ import annotations

from jitalloc._cuda import cuda_kernel
from jitalloc._cuda_loops import from_cpu
from jitalloc.kernels import reclaim as cpu
from jitalloc.kernels.cuda.calls import begins
from jitalloc.state import RECORD_SLOTS, RESULT

evict = from_cpu(cpu.reclaim_evict_cpu)
clear = from_cpu(cpu.reclaim_clear_cpu)


@cuda_kernel("void(int64[::1], int64[::1], int64, int64)", serial=True)
def reclaim_evict_cuda(words, prefix, n, reason):
    if begins(words):
        words[RESULT] = evict(words[RECORD_SLOTS:], prefix, n, reason)


@cuda_kernel("void(int64[::1], int64[::1])", serial=True)
def reclaim_clear_cuda(words, prefix):
    if begins(words):
        words[RESULT] = clear(words[RECORD_SLOTS:], prefix)
