"""The step that runs each CUDA kernel: the one of its twin. `test_house.py` holds this complete."""

from __future__ import annotations

from tests.twin_steps import POOL_STEPS, Step

# Kernels of the CPU that have no twin, and why a pool on the GPU does without.
WITHOUT_TWIN = {
    "tokens_total_cpu": "sizes a buffer that the caller of a GPU brings",
    "upkeep_check_cpu": "runs on a copy of the state",
    "upkeep_stats_cpu": "runs on a copy of the state",
    "upkeep_copy_cpu": "a copy is made by the array library",
    "upkeep_retire_cpu": "no other thread is inside: calls are ordered by the stream",
    "upkeep_unlock_cpu": "no other thread is inside: calls are ordered by the stream",
}
# Launches before the one that has the twin's name, where there is very much to do.
PARTS = {"pool_reserve_cuda": "pool_alloc_batch_cpu"}
LARGE_ONLY = {"pool_total_cuda", *PARTS}
CUDA_STEPS: dict[str, Step] = {
    name.replace("_cpu", "_cuda"): step
    for name, step in POOL_STEPS.items()
    if name not in WITHOUT_TWIN
}
CUDA_STEPS |= {name: POOL_STEPS[twin] for name, twin in PARTS.items()}
