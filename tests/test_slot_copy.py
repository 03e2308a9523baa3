"""copy_slot: K and V of all layers, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from jitalloc import copy_slot
from jitalloc.errors import InvalidArgument


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
