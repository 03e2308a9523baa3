"""Pools and caches on the GPU: what `PagePool(device="cuda")` and what stands on it return."""

from jitalloc.cuda.pool import CudaPagePool
from jitalloc.cuda.sequences import CudaPagedKVCache

__all__ = ["CudaPagePool", "CudaPagedKVCache"]
