"""Slots on the GPU, for the steps of `slot_steps.py` as they are.

Each call runs on an object of the CPU as well, and the two slabs must be equal bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any

import numpy as np

from jitalloc import NULL, SlotAllocator
from jitalloc.errors import JitallocError
from jitalloc.gpu import device as _cuda_device
from jitalloc.slots.state import slot_arrays
from tests.slot_pairs import SlotPair
from tests.slot_steps import PREFIX_STEPS, SLOT_STEPS, clear_slots
from tests.twin_steps import steps_of_twins


def up(values: Any, dtype: Any = np.int32) -> Any:
    return _cuda_device.device().upload(np.array(values, dtype))


def down(values: Any) -> Any:
    return _cuda_device.device().download(values)


class HostView:
    """Speaks like an object of the CPU and calls one on the GPU: arrays go up, results come down.

    A call that fails raises what the device kept, after a look that its results are NULL.
    """

    uploads: tuple[str, ...]  # calls whose first argument is an array

    def __init__(self, gpu: Any, cpu: Any) -> None:
        self.gpu, self.cpu = gpu, cpu

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.gpu, name)
        return self.on_both(name) if callable(found) else found

    def on_both(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            with suppress(JitallocError):
                getattr(self.cpu, name)(*args, **options)
            if name in self.uploads:
                args = (up(args[0]), *args[1:])
            try:
                return self.settled(getattr(self.gpu, name)(*args, **options))
            finally:
                assert down(self.gpu._slab).tolist() == self.cpu._slab.tolist()
                assert down(self.gpu._record)[0] == 0, "a ticket is left over"

        return call

    def settled(self, result: Any) -> Any:
        device = _cuda_device.device()
        with suppress(JitallocError):
            result = device.download(device.adopt("result", result))
        try:
            self.gpu._settled()
        except JitallocError:
            assert result is None or (result == NULL).all(), "results of a failed call"
            raise
        return result


class HostSlots(HostView):
    """An allocator on the GPU, and one on the CPU."""

    uploads = ("free_batch",)

    def __init__(self, max_slots: int) -> None:
        super().__init__(SlotAllocator(max_slots, device="cuda"), SlotAllocator(max_slots))

    @property
    def arrays(self) -> Any:
        return slot_arrays(down(self.gpu._slab), self.gpu.num_slots)


class CudaSlotPair(SlotPair):
    """An allocator on the GPU and its model."""

    def __init__(self, max_slots: int) -> None:
        super().__init__(max_slots)
        self.library: Any = HostSlots(max_slots)


# Kernels of the CPU that have no twin, and why the GPU does without.
WITHOUT_TWIN = {
    "slots_check_cpu": "runs on a copy of the state",
    **dict.fromkeys(PREFIX_STEPS, "the index lives on the host, whatever the slots live on"),
}


def clear_some(pair: SlotPair, random: Random) -> None:
    """In a run of other calls, `clear` would mostly find an empty allocator."""
    pair.call("alloc_batch", random.randrange(pair.model.free_count + 1))
    clear_slots(pair, random)


CUDA_STEPS = steps_of_twins(SLOT_STEPS | {"slots_clear_cpu": clear_some})
