"""copy_slot: K and V of all layers, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from jitalloc import copy_slot
from jitalloc.errors import InvalidArgument, WrongDevice


def caches(dtype: str = "float32") -> tuple[np.ndarray, np.ndarray]:
    keys = np.arange(2 * 4 * 6 * 3 * 5).reshape(2, 4, 6, 3, 5).astype(dtype)
    return keys, (-keys[..., :2]).copy()


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "uint16"])
@pytest.mark.parametrize("length", [0, 1, 6])
def test_the_first_tokens_of_all_layers_move(dtype: str, length: int) -> None:
    keys, values = caches(dtype)
    before = keys.copy(), values.copy()
    assert copy_slot(keys, values, 3, 1, length) is None
    for old, new in zip(before, (keys, values), strict=True):
        old[:, 1, :length] = old[:, 3, :length]
        assert np.array_equal(old, new)


def test_the_same_slot_is_nothing_to_do() -> None:
    keys, values = caches()
    copy_slot(keys, values, 2, 2, 6)
    assert np.array_equal(keys, caches()[0])


def test_views_and_three_axes() -> None:
    keys = np.arange(24.0).reshape(4, 3, 2).transpose(2, 1, 0)  # layers, slots, tokens
    values = np.zeros((2, 6, 4))[:, ::2]
    copy_slot(keys, values, 0, 2, 4)
    assert np.array_equal(keys[:, 2], keys[:, 0])


def test_nothing_is_copied_where_the_values_do_not_fit() -> None:
    keys, values = caches()
    with pytest.raises(InvalidArgument, match="values"):
        copy_slot(keys, values[:, :3], 0, 1, 6)
    assert np.array_equal(keys, caches()[0])


class Elsewhere:
    """An array of a device that can be sliced and assigned to there, and not be read."""

    def __init__(self, values: np.ndarray, kind: int = 2, number: int = 0) -> None:
        self.values, self.place = values, (kind, number)
        self.ndim, self.shape = values.ndim, [*values.shape]

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.place

    def __getitem__(self, index: Any) -> Elsewhere:
        return Elsewhere(self.values[index], *self.place)

    def __setitem__(self, index: Any, other: Any) -> None:
        assert type(other) is Elsewhere
        assert other.place == self.place
        self.values[index] = other.values

    def __array__(self, *_args: Any, **_options: Any) -> Any:
        raise AssertionError("copied to the host")


@pytest.mark.parametrize("kind", [2, 13])
def test_arrays_of_a_gpu_are_copied_where_they_are(kind: int) -> None:
    keys, values = caches()
    copy_slot(Elsewhere(keys, kind), Elsewhere(values, kind), 3, 1, 4)
    right = caches()
    copy_slot(*right, 3, 1, 4)
    assert np.array_equal(keys, right[0])
    assert np.array_equal(values, right[1])


def test_arrays_of_different_devices_are_refused() -> None:
    keys, values = caches()
    pairs = [
        (Elsewhere(keys), values),
        (keys, Elsewhere(values)),
        (Elsewhere(keys), Elsewhere(values, 2, 1)),
    ]
    for pair in pairs:
        with pytest.raises(WrongDevice, match="device of keys"):
            copy_slot(*pair, 0, 1, 6)
    for kind in (1, 10):  # the CPU, ROCm
        with pytest.raises(InvalidArgument, match="one on the GPU"):
            copy_slot(Elsewhere(keys, kind), Elsewhere(values, kind), 0, 1, 6)
    with pytest.raises(InvalidArgument, match="values"):
        copy_slot(Elsewhere(keys), Elsewhere(values[:, :3]), 0, 1, 6)
    assert np.array_equal(keys, caches()[0])
