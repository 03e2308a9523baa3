"""Twin of the search in the radix tree of a slot prefix cache."""

from __future__ import annotations

from jitalloc._cuda import cuda_kernel
from jitalloc._cuda_loops import from_cpu
from jitalloc.kernels import slot_tree
from jitalloc.kernels.cuda.calls import begins
from jitalloc.state import RECORD_SLOTS, RESULT

slot_tree_find = from_cpu(slot_tree.slot_tree_find_cpu)


@cuda_kernel("void(int64[::1], int32[::1], int64, int64[::1])", serial=True)
def slot_tree_find_cuda(words, tokens, pins, out):
    if begins(words):
        words[RESULT] = slot_tree_find(words[RECORD_SLOTS:], tokens, pins, out)
