"""What lives on the GPU: what `PagePool(device="cuda")` and the like return."""

from jitalloc.cuda.mirror import CudaBlockTableMirror
from jitalloc.cuda.pool import CudaPagePool
from jitalloc.cuda.prefix import CudaPrefixCache
from jitalloc.cuda.sequences import CudaPagedKVCache
from jitalloc.cuda.slots import CudaSlotAllocator
from jitalloc.cuda.tables import CudaBlockTables

__all__ = [
    "CudaBlockTableMirror",
    "CudaBlockTables",
    "CudaPagePool",
    "CudaPagedKVCache",
    "CudaPrefixCache",
    "CudaSlotAllocator",
]
