"""The step that runs each CUDA kernel of sequences: the one of its twin."""

from __future__ import annotations

from typing import Any

from tests.cache_steps import CACHE_STEPS, allocate_batch
from tests.sharing_pairs import commit, commit_batch, free
from tests.twin_steps import steps_of_twins

# Kernels of the CPU that have no twin, and why caches on the GPU do without.
WITHOUT_TWIN = {
    "batches_open_cpu": "the host finds the prefixes, `rows_allocate_cuda` begins all of them",
    "batches_plan_cpu": "runs on the index, which lives on the host",
    "eviction_select_cpu": "runs on a copy of the columns",
    "eviction_to_cpu": "runs on a copy of the state",
    "eviction_window_cpu": "a batch of one",
    "rows_allocate_tokens_cpu": "the host finds the prefix, `rows_allocate_cuda` shares its pages",
    "sequences_fork_cpu": "a batch of one that begins",
    "sequences_truncate_cpu": "a batch of one",
    "sharing_check_cpu": "runs on a copy of the state",
}
WITHOUT_TWIN |= dict.fromkeys(
    (
        "sharing_find_cpu",
        "sharing_follow_cpu",
        "sharing_leave_cpu",
        "sharing_pages_cpu",
        "sharing_relock_cpu",
        "sharing_room_cpu",
        "sharing_unlock_cpu",
        "sharing_use_cpu",
    ),
    "runs on the index, which lives on the host",
)
# Without a prefix cache.
CUDA_CACHE_STEPS: dict[str, Any] = {
    name: steps_of_twins(CACHE_STEPS)[name]
    for name in (
        "commits_batch_cuda",
        "eviction_window_batch_cuda",
        "room_count_cuda",
        "rows_adopt_cuda",
        "rows_allocate_cuda",
        "rows_free_cuda",
        "sequences_append_ahead_cuda",
        "sequences_append_cuda",
        "sequences_fork_batch_cuda",
        "sequences_reorder_cuda",
        "sequences_truncate_batch_cuda",
    )
}
CUDA_CACHE_STEPS["rows_mark_cuda"] = CACHE_STEPS["eviction_select_cpu"]
# By id, a batch of one; what else a step is for is chosen on the host.
BY_ID_STEPS = [
    CACHE_STEPS[name]
    for name in (
        "commits_row_cpu",
        "eviction_to_cpu",
        "eviction_window_cpu",
        "sequences_fork_cpu",
        "sequences_truncate_cpu",
    )
]
BY_ID_STEPS.append(allocate_batch)
# With one.
CUDA_SHARING_STEPS: dict[str, Any] = {
    "sharing_commit_cuda": commit,
    "sharing_count_cuda": free,
    "sharing_facts_cuda": commit_batch,
    "sharing_gather_cuda": free,
}
CUDA_STEPS: dict[str, Any] = {**CUDA_CACHE_STEPS, **CUDA_SHARING_STEPS}
