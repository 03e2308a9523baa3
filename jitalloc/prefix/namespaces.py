"""The namespaces of a prefix cache: their names, and the roots that their pages hang from."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from jitalloc.errors import CorruptState, InvalidArgument
from jitalloc.state import INT32_MAX

MAIN_ROOT: Final = -2  # the namespace None
UNKNOWN_ROOT: Final = -3  # a namespace in which nothing is ever cached
FIRST_NAMESPACE: Final = 2
LAST_NAMESPACE: Final = INT32_MAX - 2
SWEEP_AT: Final = 1024


def numbers_of(roots: NDArray[Any]) -> set[int]:
    """Return the numbers of the namespaces with these roots."""
    return set((-2 - np.unique(roots)).tolist())


class Namespaces:
    """Names of namespaces, and their numbers: the pages of number `n` hang from the root `-2 - n`.

    Whoever changes them holds the lock of their cache. They keep no link to the cache, which is
    to go when it is dropped: what tells the roots in use is handed to the calls that need it.

    Attributes
    ----------
    numbers : dict of Hashable to int
    last : int
        The number given last.
    wrapped : bool
        Whether numbers have begun anew.
    sweep_at : int
        So many names are looked through, for some to forget, before another is made.
    """

    __slots__ = ("last", "numbers", "sweep_at", "wrapped")

    def __init__(self) -> None:
        self.numbers: dict[Hashable, int] = {}
        self.last = FIRST_NAMESPACE
        self.wrapped = False
        self.sweep_at = SWEEP_AT

    def root(self, namespace: Hashable) -> int:
        """Return the root of a namespace; that of an unknown one has no pages behind it."""
        if namespace is None:
            return MAIN_ROOT
        try:
            known = self.numbers.get(namespace)
        except TypeError:
            raise InvalidArgument("namespace", namespace, "must be hashable") from None
        return UNKNOWN_ROOT if known is None else -2 - known

    def make_root(self, namespace: Hashable, roots_in_use: Callable[[], NDArray[Any]]) -> int:
        """Return the root of a namespace, which is made where it is unknown.

        `roots_in_use` lists the roots that have pages, or may yet get some.
        """
        if self.root(namespace) == UNKNOWN_ROOT:
            if len(self.numbers) >= self.sweep_at:
                self._sweep(numbers_of(roots_in_use()))
            self.numbers[namespace] = self._fresh(roots_in_use)
        return self.root(namespace)

    def _sweep(self, live: set[int]) -> None:
        """Forget the namespaces that hold nothing."""
        self.numbers = {name: number for name, number in self.numbers.items() if number in live}
        self.sweep_at = max(SWEEP_AT, 2 * len(self.numbers))

    def _fresh(self, roots_in_use: Callable[[], NDArray[Any]]) -> int:
        # Numbers go up, so that a call that looked a namespace up before a sweep cannot meet the
        # pages of another one. After two billion they begin anew, past those in use.
        self.last += 1
        if self.last > LAST_NAMESPACE:
            self.wrapped = True
            self.last = FIRST_NAMESPACE
        if self.wrapped:
            taken = numbers_of(roots_in_use()).union(self.numbers.values())
            while self.last in taken:
                self.last += 1
        return self.last

    def replace(self, numbers: dict[Hashable, int]) -> None:
        """Take these names and numbers instead; the next number is past them and the old ones."""
        self.numbers = numbers
        self.last = max([self.last, *numbers.values()])

    def copy(self) -> Namespaces:
        """Return others with the same names and numbers, that go on in the same way."""
        other = Namespaces()
        other.numbers, other.sweep_at = dict(self.numbers), self.sweep_at
        other.last, other.wrapped = self.last, self.wrapped
        return other

    def check(self, roots: NDArray[Any]) -> None:
        """Raise `CorruptState` where a root in use is that of no namespace ever made."""
        known = range(FIRST_NAMESPACE, LAST_NAMESPACE if self.wrapped else self.last + 1)
        strange = [ns for ns in numbers_of(roots) if ns not in known and -2 - ns != MAIN_ROOT]
        if strange:
            raise CorruptState(f"pages stand in a namespace {strange[0]} that was never made")
