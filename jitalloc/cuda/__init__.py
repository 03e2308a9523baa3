"""Pools on the GPU: what `PagePool(device="cuda")` returns."""

from jitalloc.cuda.pool import CudaPagePool

__all__ = ["CudaPagePool"]
