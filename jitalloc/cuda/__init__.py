"""Pools and caches on the GPU: what `PagePool(device="cuda")` and what stands on it return."""

from jitalloc.cuda.pool import CudaPagePool
from jitalloc.cuda.sequences import CudaPagedKVCache
from jitalloc.kernels.cuda import eviction, rows, sharing  # noqa: F401  (twins found by name)

__all__ = ["CudaPagePool", "CudaPagedKVCache"]
