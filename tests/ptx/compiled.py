"""How the machine's own loops are compiled by Numba, and how they come to memory by its address."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numba
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from jitalloc._jit import cache_folder
from tests.ptx.layout import Launch

WORDS = types.CPointer(types.int64)
HERE = Path(__file__).parent

helper = njit(nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)


@cache
def source_digest() -> str:
    """Return a digest of all sources of the machine: what it compiles is kept by that."""
    digest = hashlib.blake2b(digest_size=8)
    for source in sorted(HERE.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()


@contextmanager
def kept_on_disk() -> Iterator[None]:
    """Within, Numba takes as its cache a folder by the machine's sources."""
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = f"{cache_folder()}-ptx-{source_digest()}"
    try:
        yield
    finally:
        numba.config.CACHE_DIR = before


def entry(signature: str) -> Callable[[Callable[..., Any]], Any]:
    """Make a function callable from Python; it is compiled at its first call."""

    def wrap(function: Callable[..., Any]) -> Any:
        dispatcher: Any = None

        def call(*arguments: Any) -> Any:
            nonlocal dispatcher
            if dispatcher is None:
                with kept_on_disk():
                    made: Any = njit(nogil=True)(function)
                    made.enable_caching()
                    made.compile(signature)
                dispatcher = made
            return dispatcher(*arguments)

        return call

    return wrap


def callback(words: int) -> Callable[[Callable[..., Any]], Any]:
    """Make a function callable from native code: launch, block, thread, and so many int64.

    What is made returns the function's address.
    """

    def wrap(function: Callable[..., Any]) -> Any:
        @cache
        def address() -> tuple[int, Any]:
            with kept_on_disk():
                made: Any = cfunc(types.int64(*[WORDS] * 3, *[types.int64] * words), cache=True)(
                    function
                )
            return made.address, made

        return lambda: address()[0]

    return wrap


@intrinsic
def call_step(_typing: Any, function: Any, launch: Any, block: Any, thread: Any) -> Any:
    """Call a kernel's function by its address, with three addresses; return a `Run`."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(64), [cgutils.voidptr_t] * 3)
        called = builder.inttoptr(arguments[0], kind.as_pointer())
        given = [builder.inttoptr(each, cgutils.voidptr_t) for each in arguments[1:]]
        return builder.call(called, given)

    return types.int64(*[types.int64] * 4), generate


def _pointer_to(kind: Any) -> Any:
    @intrinsic
    def at(_typing: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            of = context.get_value_type(signature.return_type)
            return builder.inttoptr(arguments[0], of)

        return types.CPointer(kind)(types.int64), generate

    return at


_int64_at = _pointer_to(types.int64)
_int32_at = _pointer_to(types.int32)
_uint8_at = _pointer_to(types.uint8)


@helper
def words_at(address, size):  # type: ignore[no-untyped-def]
    """Return int64[size] at an address."""
    return carray(_int64_at(address), (size,))


@helper
def rows_at(address, size, width):  # type: ignore[no-untyped-def]
    """Return int64[size, width] at an address."""
    return carray(_int64_at(address), (size, width))


@helper
def halves_at(address, size, width):  # type: ignore[no-untyped-def]
    """Return int32[size, width] at an address."""
    return carray(_int32_at(address), (size, width))


@helper
def bytes_at(address, size):  # type: ignore[no-untyped-def]
    """Return uint8[size] at an address."""
    return carray(_uint8_at(address), (size,))


@helper
def load_bytes(address, size):  # type: ignore[no-untyped-def]
    """Return what an aligned word of 1, 2, 4 or 8 bytes holds, without a sign."""
    value = 0
    at = bytes_at(address, size)
    for i in range(size):
        value |= int(at[i]) << (8 * i)
    return value


@helper
def store_bytes(address, value, size):  # type: ignore[no-untyped-def]
    """Set a word of so many bytes."""
    at = bytes_at(address, size)
    for i in range(size):
        at[i] = (value >> (8 * i)) & 255


@helper
def fail(L, B, T, error, line, a, b, c):  # type: ignore[no-untyped-def]
    """Say why the launch ends, unless somebody has; return 0."""
    if L[Launch.ERROR] == 0:
        L[Launch.ERROR] = error
        L[Launch.ERROR_LINE] = line
        L[Launch.ERROR_BLOCK] = B[0]
        L[Launch.ERROR_THREAD] = T
        L[Launch.ERROR_A] = a
        L[Launch.ERROR_B] = b
        L[Launch.ERROR_C] = c
    return 0
