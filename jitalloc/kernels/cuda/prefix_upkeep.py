"""Twins of the loops over a whole prefix cache: rename, resize, roots.

One thread runs each of them: the hash table is built anew run by run, and the order of the runs in
a bucket is part of the state.
"""

from __future__ import annotations

from jitalloc._cuda import cuda_kernel
from jitalloc._cuda_loops import from_cpu
from jitalloc.kernels import prefix_upkeep as cpu
from jitalloc.kernels.cuda.calls import begins
from jitalloc.state import RECORD_SLOTS, RESULT

rename = from_cpu(cpu.prefix_upkeep_rename_cpu)
resize = from_cpu(cpu.prefix_upkeep_resize_cpu)
roots = from_cpu(cpu.prefix_upkeep_roots_cpu)


@cuda_kernel("void(int64[::1], int64[::1], int32[::1], int32[::1], int32[::1])", serial=True)
def prefix_upkeep_rename_cuda(words, prefix, names, src, dst):
    if begins(words):
        words[RESULT] = rename(prefix, names, src, dst)


@cuda_kernel("void(int64[::1], int64[::1], int64[::1])", serial=True)
def prefix_upkeep_resize_cuda(words, prefix, new):
    if begins(words):
        words[RESULT] = resize(prefix, new)


@cuda_kernel("void(int64[::1], int64[::1], int32[::1])", serial=True)
def prefix_upkeep_roots_cuda(words, prefix, out):
    if begins(words):
        words[RESULT] = roots(words[RECORD_SLOTS:], prefix, out)
