"""Slots on the GPU as callers see them: arrays, late errors, what waits.

    NUMBA_ENABLE_CUDASIM=1 NUMBA_DISABLE_JIT=1 pytest tests/test_cuda_slot_calls.py

Without a GPU and without these two set, the tests are skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jitalloc import NULL, SlotAllocator, SlotPrefixCache, copy_slot, errors
from jitalloc.cuda import CudaSlotAllocator
from jitalloc.errors import (
    CorruptState,
    InvalidArgument,
    OutOfSlots,
    SlotFree,
    WrongDevice,
)
from jitalloc.gpu import device as _cuda_device
from jitalloc.gpu import kernel as _cuda
from jitalloc.slots.state import FREE_SLOTS
from tests import slot_faults
from tests.cuda_slot_steps import HostSlots, down, up
from tests.gpu import ON_DEVICE
from tests.pool_faults import ANY, CudaArray
from tests.ptx import install
from tests.recording import RecordingDevice
from tests.slot_pairs import slot_state

pytestmark = ON_DEVICE


@pytest.fixture
def slots() -> Any:
    """Seventy slots on the GPU."""
    return SlotAllocator(70, device="cuda")


# The classes.


def test_the_device_chooses_the_class(slots: Any) -> None:
    assert type(slots) is CudaSlotAllocator
    assert isinstance(slots, SlotAllocator)
    assert (slots.device, SlotAllocator(4).device) == ("cuda", "cpu")
    assert repr(slots) == "CudaSlotAllocator(max_slots=70): 0 used, 70 free"


def test_a_class_of_the_callers_own_stays_on_its_device() -> None:
    class Mine(SlotAllocator):
        pass

    assert type(Mine(4)) is Mine
    with pytest.raises(WrongDevice, match="'cpu' only"):
        Mine(4, device="cuda")
    with pytest.raises(WrongDevice, match="'cuda' only"):
        CudaSlotAllocator(4)


HOST = [np.zeros(1, np.int32), np.zeros(1, np.int64), [0], (0,), range(1), 0, None]


@pytest.mark.parametrize("values", HOST, ids=repr)
def test_host_memory_is_refused(slots: Any, values: Any) -> None:
    slots.alloc()
    calls: list[Callable[[], Any]] = [lambda: slots.free_batch(values)]
    if values is not None:
        calls.append(lambda: slots.alloc_batch(1, out=values))
    for call in calls:
        with pytest.raises(WrongDevice):
            call()
    assert slots.free_count == 69


def test_dtypes_and_shapes_are_exact(slots: Any) -> None:
    with pytest.raises(InvalidArgument, match="must be int32"):
        slots.free_batch(up([0], np.int64))
    with pytest.raises(InvalidArgument, match="one dimension"):
        slots.free_batch(up([[0]]))
    with pytest.raises(InvalidArgument, match="exactly 2"):
        slots.alloc_batch(2, out=up([0, 0, 0]))
    with pytest.raises(InvalidArgument, match="one-dimensional array of int32"):
        slots.alloc_batch(1, out=up([0], np.int64))


def test_arrays_that_are_not_contiguous_are_read(slots: Any) -> None:
    slots.alloc_batch(6)
    slots.free_batch(up([0, 7, 2, 7, 4])[::2])
    assert [slots.is_free(slot) for slot in range(6)] == [True, False] * 3


def test_a_batch_goes_into_the_buffer_of_the_caller(slots: Any) -> None:
    out = up([7, 7, 7])
    assert slots.alloc_batch(3, out=out) is out
    assert down(out).tolist() == [0, 1, 2]


# Errors come late.


def test_the_first_failure_is_kept_until_somebody_waits(slots: Any) -> None:
    slots.alloc_batch(3)
    slots.free_batch(up([0, 1, 0]))
    assert down(slots.alloc_batch(68)).tolist() == [NULL] * 68
    assert down(slots.alloc_batch(1)).tolist() == [3]  # calls go on
    with pytest.raises(SlotFree) as caught:
        _ = slots.free_count
    assert (caught.value.position, caught.value.value) == (2, 0)
    assert caught.value.__notes__ == ["raised late: it is call 1 of the allocator (free_batch)"]
    assert slots.free_count == 66
    slots.check()


WAITS: dict[str, Callable[[Any], Any]] = {
    "alloc": lambda s: s.alloc(),
    "check": lambda s: s.check(),
    "free": lambda s: s.free(2),
    "free_count": lambda s: s.free_count,
    "is_current": lambda s: s.is_current(2, 1),
    "is_free": lambda s: s.is_free(2),
    "occupy": lambda s: s.occupy(69),
    "peak_used": lambda s: s.peak_used,
    "repr": repr,
    "version": lambda s: s.version(2),
}


@pytest.mark.parametrize("name", WAITS)
def test_every_call_that_waits_raises_it(slots: Any, name: str) -> None:
    slots.alloc_batch(69)
    before = down(slots._slab).tolist()
    slots.alloc_batch(2)
    with pytest.raises(OutOfSlots) as caught:
        WAITS[name](slots)
    assert (caught.value.requested, caught.value.available) == (2, 1)
    assert down(slots._slab).tolist() == before
    WAITS[name](slots)


def test_a_call_takes_no_answer_of_another(slots: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when another thread comes in between the launch of a call and its fetch."""
    gpu, other = _cuda_device.device(), []
    fetch = gpu.download

    def interrupted(values: Any) -> Any:
        monkeypatch.setattr(gpu, "download", fetch)
        other.append(slots.alloc())
        return fetch(values)

    for first in (0, 2):
        monkeypatch.setattr(gpu, "download", interrupted)
        assert slots.alloc() == first
    assert other == [1, 3]
    slots.alloc_batch(67)
    monkeypatch.setattr(gpu, "download", interrupted)
    with pytest.raises(OutOfSlots):  # nobody else has seen it
        slots.version(0)
    assert other == [1, 3, 4]


def test_more_slots_than_there_are_is_refused_at_once(slots: Any) -> None:
    slots.alloc_batch(3)
    with pytest.raises(OutOfSlots) as caught:
        slots.alloc_batch(71)
    assert (caught.value.requested, caught.value.available) == (71, 67)


# But for what the uploads of this test would hide, and for NULL, which is padding on the GPU.
HIDDEN = ("bool in", "unsigned", "GPU", "negative slot in")
FAULTS = [name for name in slot_faults.ALLOCATOR_FAULTS if not any(word in name for word in HIDDEN)]


@pytest.mark.parametrize("name", FAULTS)
def test_bad_input_is_refused_and_changes_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slot_faults, "SlotAllocator", HostSlots)
    at: Any = SimpleNamespace()
    slot_faults.add_slots(at)
    fault = slot_faults.SLOT_FAULTS[name]

    before = slot_state(at.slots)
    with pytest.raises(errors.JitallocError) as caught:
        fault.call(at)
    error: Any = caught.value
    assert type(error) is fault.error
    if fault.argument is not None:
        assert (error.argument, error.position) == (fault.argument, fault.position)
        assert fault.value is ANY or error.value == fault.value
    assert slot_state(at.slots) == before


# The prefix cache beside them, on the host.


def test_a_prefix_cache_on_the_host_tells_what_the_gpu_frees(slots: Any) -> None:
    cache = SlotPrefixCache(3, 8)
    batch = slots.alloc_batch(3)
    for slot, token in enumerate((5, 6, 7)):
        cache.insert([1, token], slot, slots.version(slot))
    match = cache.find([1, 6, 9], pin=True)
    assert match is not None
    assert (match, slots.is_current(match.slot, match.version)) == ((2, 1, 1), True)
    cache.release(match)
    gone = cache.clear()
    assert gone.tolist() == [0, 2, 1]
    slots.free_batch(up(gone))
    assert (slots.free_count, len(cache), down(batch).tolist()) == (70, 0, [0, 1, 2])


def test_tokens_on_the_gpu_are_refused() -> None:
    cache = SlotPrefixCache(3, 8)
    with pytest.raises(WrongDevice, match="the index lives on the host"):
        cache.find(CudaArray())
    with pytest.raises(WrongDevice, match="the index lives on the host"):
        cache.insert(CudaArray(), 0, 1)


def test_check_finds_what_is_broken(slots: Any) -> None:
    slots.alloc_batch(3)
    slots._slab[FREE_SLOTS] = 66
    with pytest.raises(CorruptState, match="free"):
        slots.check()


# copy_slot.


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_a_slot_holds_is_copied_on_the_gpu(dtype: str) -> None:
    keys = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3).astype(dtype)
    values = -keys[..., :2]
    there = up(keys, dtype), up(values, dtype)
    copy_slot(*there, 2, 0, 5)
    copy_slot(keys, values, 2, 0, 5)
    assert [down(each).tolist() for each in there] == [keys.tolist(), values.tolist()]


# Nothing waits that need not.

STARTS: dict[str, Callable[[Any, Any], Any]] = {
    "alloc_batch": lambda s, at: s.alloc_batch(3),
    "alloc_batch into a buffer": lambda s, at: s.alloc_batch(3, out=at["out"]),
    "alloc_batch that fails": lambda s, at: s.alloc_batch(67),
    "free_batch": lambda s, at: s.free_batch(at["taken"]),
    "free_batch that fails": lambda s, at: s.free_batch(at["out"]),
    "clear": lambda s, at: s.clear(),
}


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> RecordingDevice:
    """A device that notes launches and waits."""
    if not (_cuda.SIMULATED or install.ASKED):
        pytest.skip("a GPU does not tell who waits")
    gpu = RecordingDevice()
    monkeypatch.setattr("jitalloc.gpu.slab.device", lambda: gpu)
    return gpu


@pytest.mark.parametrize("name", STARTS)
def test_a_batch_is_one_launch_and_waits_for_nothing(recorded: Any, name: str) -> None:
    slots: Any = SlotAllocator(70, device="cuda")
    slots.alloc_batch(5)
    at = {
        "out": recorded.upload(np.array([7, 7, 7], np.int32)),
        "taken": recorded.upload(np.array([4, 0], np.int32)),
    }
    recorded.waits.clear()
    recorded.starts.clear()
    STARTS[name](slots, at)
    assert recorded.waits == []
    assert len(recorded.starts) == 1


def test_all_other_calls_wait(recorded: Any) -> None:
    slots: Any = SlotAllocator(70, device="cuda")
    slots.alloc_batch(5)
    for wait in WAITS.values():
        recorded.waits.clear()
        wait(slots)
        assert recorded.waits
    mine = {name for name in dir(SlotAllocator) if name[0] != "_"}
    tried = {name.partition(" ")[0] for name in (*STARTS, *WAITS)}
    assert mine - tried == {"arrays", "device", "num_slots"}
    assert tried - mine == {"repr"}
