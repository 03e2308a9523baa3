"""What lives on the GPU: what `PagePool(device="cuda")` returns, and what stands on such a pool."""

from jitalloc.cuda.matches import CudaPrefixBatch, CudaPrefixMatch
from jitalloc.cuda.pool import CudaPagePool
from jitalloc.cuda.prefix import CudaPrefixCache

__all__ = ["CudaPagePool", "CudaPrefixBatch", "CudaPrefixCache", "CudaPrefixMatch"]
