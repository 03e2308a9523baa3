"""What lives on the GPU: what `PagePool(device="cuda")` and the like return."""

from jitalloc.pool.pool_cuda import CudaPagePool
from jitalloc.prefix.prefix_cuda import CudaPrefixCache
from jitalloc.sequences.mirror_cuda import CudaBlockTableMirror
from jitalloc.sequences.sequences_cuda import CudaPagedKVCache
from jitalloc.sequences.tables_cuda import CudaBlockTables
from jitalloc.slots.slots_cuda import CudaSlotAllocator

__all__ = [
    "CudaBlockTableMirror",
    "CudaBlockTables",
    "CudaPagePool",
    "CudaPagedKVCache",
    "CudaPrefixCache",
    "CudaSlotAllocator",
]
