"""What lives on the GPU: what `PagePool(device="cuda")` and the like return."""

from jitalloc.cuda.matches import CudaPrefixBatch, CudaPrefixMatch
from jitalloc.cuda.pool import CudaPagePool
from jitalloc.cuda.prefix import CudaPrefixCache
from jitalloc.cuda.slot_prefix import CudaSlotPrefixCache
from jitalloc.cuda.slots import CudaSlotAllocator
from jitalloc.cuda.tables import CudaBlockTables

__all__ = [
    "CudaBlockTables",
    "CudaPagePool",
    "CudaPrefixBatch",
    "CudaPrefixCache",
    "CudaPrefixMatch",
    "CudaSlotAllocator",
    "CudaSlotPrefixCache",
]
