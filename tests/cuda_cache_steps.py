"""The step that runs each CUDA kernel of sequences: the one of its twin."""

from __future__ import annotations

from typing import Any

from tests.cache_steps import CACHE_STEPS
from tests.sharing_steps import SHARING_STEPS

# Kernels of the CPU that have no twin, and why caches on the GPU do without.
WITHOUT_TWIN = {"sharing_check_cpu": "runs on a copy of the state"}
# Without a prefix cache.
CUDA_CACHE_STEPS: dict[str, Any] = {
    name.replace("_cpu", "_cuda"): step
    for name, step in CACHE_STEPS.items()
    if name.partition("_")[0] in ("eviction", "rows", "sequences")
}
# With one.
CUDA_SHARING_STEPS: dict[str, Any] = {
    "rows_allocate_tokens_cuda": SHARING_STEPS["rows_allocate_tokens_cpu"],
    "sequences_append_serial_cuda": SHARING_STEPS["sharing_check_cpu"],
    "sharing_commit_cuda": SHARING_STEPS["sharing_commit_cpu"],
    "sharing_pages_cuda": SHARING_STEPS["sharing_pages_cpu"],
    "sharing_relock_cuda": SHARING_STEPS["sharing_relock_cpu"],
}
CUDA_STEPS: dict[str, Any] = {**CUDA_CACHE_STEPS, **CUDA_SHARING_STEPS}
