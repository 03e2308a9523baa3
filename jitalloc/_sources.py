"""Which files a kernel is made from, and a digest of them: what compiled code is kept under.

Derived from where kernels stand and what those files import, not from a list of folders: a file
that moves is still found, and a list that came out empty is an error rather than a key that
never changes.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

PACKAGE: Final = __name__.partition(".")[0]

# Absolute imports, at any depth of indentation, of one line or in parentheses. A parser would
# take 100 ms for all files of kernels at each start; tests compare with one.
IMPORT: Final = re.compile(
    rf"^[ \t]*(?:from[ \t]+({PACKAGE}[\w.]*)[ \t]+import[ \t]+(\([^)]*\)|.+)"
    rf"|import[ \t]+({PACKAGE}[\w.]*))",
    re.MULTILINE,
)


def kernel_sources(functions: Iterable[Callable[..., Any]]) -> list[Path]:
    """Return the files of the package that functions stand in, and all that these import.

    Parameters
    ----------
    functions : iterable of callable
        What kernels are made from. What stands outside of the package is left out.

    Returns
    -------
    list of Path
        In the order of the modules' names.

    Raises
    ------
    RuntimeError
        There would be none.
    """
    found: dict[str, Path] = {}
    waiting = {function.__module__ for function in functions}
    while waiting:
        module = waiting.pop()
        if module.partition(".")[0] == PACKAGE and module not in found:
            found[module] = _file_of(module)
            waiting.update(_imported(found[module].read_text(encoding="utf-8")))
    if not found:
        raise RuntimeError(f"no kernel stands in {PACKAGE}: compiled code would never be renewed")
    return [found[module] for module in sorted(found)]


def source_digest(functions: Iterable[Callable[..., Any]]) -> str:
    """Return a digest of `kernel_sources`, 16 hexadecimal digits.

    Raises
    ------
    RuntimeError
        There are none.
    OSError
        The package lies where its sources cannot be read.
    """
    digest = hashlib.blake2b(digest_size=8)
    for source in kernel_sources(functions):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _imported(text: str) -> Iterator[str]:
    """Yield the modules of the package that a file imports."""
    for module, names, plain in IMPORT.findall(text):
        yield module or plain
        for name in re.findall(r"[^\W\d]\w*", re.sub(r"#.*", "", names)):
            if _is_module(f"{module}.{name}"):
                yield f"{module}.{name}"


def _is_module(name: str) -> bool:
    """Say whether a dotted name is a module, whose package has been imported."""
    package = sys.modules.get(name.rpartition(".")[0])
    folders = getattr(package, "__path__", ())
    last = name.rpartition(".")[2]
    return any(
        Path(folder, f"{last}.py").is_file() or Path(folder, last, "__init__.py").is_file()
        for folder in folders
    )


def _file_of(module: str) -> Path:
    loaded = sys.modules.get(module)
    spec = getattr(loaded, "__spec__", None) or find_spec(module)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"{module} has no file")
    return Path(spec.origin)
