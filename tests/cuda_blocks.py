"""Pools of the GPU whose calls take many small blocks: see the fixture `many_small_blocks`."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np

from jitalloc.gpu import device as _cuda_device
from tests.cuda_pairs import CudaPair

PAGES = 300


def blocks_of(elements: int) -> int:
    """How many blocks a call takes for so many elements."""
    return min(5, -(-elements // _cuda_device.device().threads))


def up(values: Any, dtype: Any = np.int32) -> Any:
    return _cuda_device.device().upload(np.array(values, dtype))


def down(values: Any) -> list[int]:
    listed: list[int] = _cuda_device.device().download(values).tolist()
    return listed


def in_use(random: Random, order: str = "sorted", null_page: bool = False) -> CudaPair:
    """A pool of whose pages some are free, some released, some held once and some thrice."""
    pair = CudaPair(PAGES, 4, order=order, null_page=null_page)
    pages = pair.result("alloc", 280)
    random.shuffle(pages)
    pair.result("free", pages[:90])
    pair.result("share", pages[100:130])
    pair.result("share", pages[100:130])
    return pair
