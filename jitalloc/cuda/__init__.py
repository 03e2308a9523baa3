"""What lives on the GPU: pools, which `PagePool(device="cuda")` returns, and block tables."""

from jitalloc.cuda.pool import CudaPagePool
from jitalloc.cuda.tables import CudaBlockTables

__all__ = ["CudaBlockTables", "CudaPagePool"]
