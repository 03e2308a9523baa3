"""Twins of the loops that change a slot prefix cache: insert, evict, remove, pin, release."""

from __future__ import annotations

from jitalloc._cuda import cuda_kernel
from jitalloc._cuda_loops import from_cpu
from jitalloc.kernels import slot_entries
from jitalloc.kernels.cuda.calls import begins
from jitalloc.state import RECORD_SLOTS, RESULT

slot_entries_insert = from_cpu(slot_entries.slot_entries_insert_cpu)
slot_entries_evict = from_cpu(slot_entries.slot_entries_evict_cpu)
slot_entries_remove = from_cpu(slot_entries.slot_entries_remove_cpu)
slot_entries_pin = from_cpu(slot_entries.slot_entries_pin_cpu)
slot_entries_release = from_cpu(slot_entries.slot_entries_release_cpu)


@cuda_kernel("void(int64[::1], int32[::1], int64, int64, int64[::1])", serial=True)
def slot_entries_insert_cuda(words, tokens, slot, version, out):
    if begins(words):
        slab = words[RECORD_SLOTS:]
        words[RESULT] = slot_entries_insert(slab, tokens, slot, version, out)


@cuda_kernel("void(int64[::1], int64[::1])", serial=True)
def slot_entries_evict_cuda(words, out):
    if begins(words):
        words[RESULT] = slot_entries_evict(words[RECORD_SLOTS:], out)


@cuda_kernel("void(int64[::1], int64, int64, int64[::1])", serial=True)
def slot_entries_remove_cuda(words, slot, version, out):
    if begins(words):
        words[RESULT] = slot_entries_remove(words[RECORD_SLOTS:], slot, version, out)


@cuda_kernel("void(int64[::1], int64, int64)", serial=True)
def slot_entries_pin_cuda(words, slot, version):
    if begins(words):
        words[RESULT] = slot_entries_pin(words[RECORD_SLOTS:], slot, version)


@cuda_kernel("void(int64[::1], int64, int64)", serial=True)
def slot_entries_release_cuda(words, slot, version):
    if begins(words):
        words[RESULT] = slot_entries_release(words[RECORD_SLOTS:], slot, version)
