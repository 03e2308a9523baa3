"""What stands for the classes of the CPU on the GPU: `PagePool(device="cuda")` and the like."""

from jitalloc.cuda.pool import CudaPagePool
from jitalloc.cuda.slot_prefix import CudaSlotPrefixCache
from jitalloc.cuda.slots import CudaSlotAllocator

__all__ = ["CudaPagePool", "CudaSlotAllocator", "CudaSlotPrefixCache"]
