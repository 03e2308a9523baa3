"""Which class stands for which device, under one name for all of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar, Self, TypeVar, get_args

from jitalloc.choices import Device
from jitalloc.errors import WrongDevice

F = TypeVar("F", bound=Callable[..., Any])


def called(name: str) -> Callable[[F], F]:
    """Let errors about the arguments of a constructor name what was called: `name`."""

    def rename(constructor: F) -> F:
        constructor.__qualname__ = name
        return constructor

    return rename


class OnDevice:
    """A class that makes itself as the one of its subclasses that manages a device.

    Attributes
    ----------
    device : str
        `"cpu"` or `"cuda"`.
    """

    __slots__ = ()

    device: ClassVar[Device] = "cpu"
    __signature__: ClassVar[inspect.Signature]
    _by_device: ClassVar[dict[str, type[Any]]]

    def __init_subclass__(cls, device: Device | None = None) -> None:
        if OnDevice in cls.__bases__:
            cls._by_device = {}
        # What `help` shows are the arguments of __init__, not those by which __new__ chooses.
        of_init = inspect.signature(cls.__init__)
        cls.__signature__ = of_init.replace(parameters=[*of_init.parameters.values()][1:])
        if device is not None:
            cls.device = device
            cls._by_device[device] = cls

    def _check_device(self, device: Any) -> None:
        """Raise where `device` is none, or not the one that this class manages."""
        if not isinstance(device, str) or device not in get_args(Device):
            expected = f"must be {' or '.join(map(repr, get_args(Device)))}"
            raise WrongDevice("device", device, expected)
        if device != self.device:
            expected = f"a {type(self).__name__} lives on {self.device!r} only"
            raise WrongDevice("device", device, expected)

    @classmethod
    def _on(cls, device: Any) -> Self:
        """Return an object for `device`, its `__init__` not called yet.

        For a device that nobody manages, one of this class, whose `__init__` has to refuse it.
        """
        there = cls._by_device.get(device) if isinstance(device, str) else None
        made: Self = object.__new__(there if there is not None and issubclass(there, cls) else cls)
        return made
