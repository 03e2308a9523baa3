"""What lives on the GPU: what `PagePool(device="cuda")` returns, and what stands on such a pool."""

from jitalloc.cuda.matches import CudaPrefixBatch, CudaPrefixMatch
from jitalloc.cuda.pool import CudaPagePool
from jitalloc.cuda.prefix import CudaPrefixCache
from jitalloc.cuda.tables import CudaBlockTables

__all__ = [
    "CudaBlockTables",
    "CudaPagePool",
    "CudaPrefixBatch",
    "CudaPrefixCache",
    "CudaPrefixMatch",
]
