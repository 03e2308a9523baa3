"""Which class stands for which device, under one name for all of them."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar, Self


class OnDevice:
    """A class that makes itself as the one of its subclasses that manages a device.

    Attributes
    ----------
    device : str
        `"cpu"` or `"cuda"`.
    """

    __slots__ = ()

    device: ClassVar[str] = "cpu"
    __signature__: ClassVar[inspect.Signature]
    _by_device: ClassVar[dict[str, type[Any]]]

    def __init_subclass__(cls, device: str | None = None) -> None:
        if OnDevice in cls.__bases__:
            cls._by_device = {}
        # What `help` shows are the arguments of __init__, not those by which __new__ chooses.
        of_init = inspect.signature(cls.__init__)
        cls.__signature__ = of_init.replace(parameters=[*of_init.parameters.values()][1:])
        if device is not None:
            cls.device = device
            cls._by_device[device] = cls

    @classmethod
    def _on(cls, device: Any) -> Self:
        """Return an object for `device`, its `__init__` not called yet.

        For a device that nobody manages, one of this class, whose `__init__` has to refuse it.
        """
        there = cls._by_device.get(device) if isinstance(device, str) else None
        made: Self = object.__new__(there if there is not None and issubclass(there, cls) else cls)
        return made
