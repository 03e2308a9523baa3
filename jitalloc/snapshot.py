"""One `.npz` file for a complete state: versioned, checksummed, written in one step."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from jitalloc.errors import SnapshotError

FORMAT: Final = "jitalloc"
VERSION: Final = 3


def _digest(text: str, arrays: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.blake2b(text.encode(), digest_size=16)
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}:{array.dtype.str}:{array.shape}".encode())
        digest.update(array.view(np.uint8).data if array.size else b"")
    return digest.hexdigest()


def _umask() -> int:
    mask = os.umask(0o077)  # the only way to read it is to set it
    os.umask(mask)
    return mask


def write_state(
    path: str | os.PathLike[str],
    kind: str,
    facts: Mapping[str, Any],
    arrays: Mapping[str, NDArray[Any]],
) -> None:
    """Write `arrays` and the JSON-able `facts` to `path`, replacing it in one step or not at all.

    The file is written beside `path` under another name, flushed to disk and renamed.
    """
    text = json.dumps({"format": FORMAT, "version": VERSION, "kind": kind, **facts})
    target = Path(path)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(
                file,
                allow_pickle=False,
                facts=np.array(text),
                digest=np.array(_digest(text, arrays)),
                **arrays,
            )
            file.flush()
            os.fsync(file.fileno())
            os.chmod(name, 0o666 & ~_umask())  # mkstemp makes a file that only its owner reads
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise


def read_state(
    path: str | os.PathLike[str], kind: str, names: tuple[str, ...], optional: tuple[str, ...] = ()
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Read what `write_state` wrote; return `(facts, arrays)` with exactly the arrays `names`.

    Those of `optional` are there where `facts` has an entry of the same name.

    Raises
    ------
    SnapshotError
        The file is no such file, is cut short, is damaged, or has another version or kind.
    FileNotFoundError, PermissionError, IsADirectoryError
        As `open` raises them.
    """
    with open(path, "rb") as file:
        try:
            with np.load(file, allow_pickle=False) as archive:
                found = {name: archive[name] for name in archive.files}
        except (ValueError, EOFError, OSError, KeyError, zipfile.BadZipFile) as error:
            raise SnapshotError(f"{path}: not a saved state, or cut short ({error})") from error
        except Exception as error:  # zlib and struct errors of a damaged archive
            raise SnapshotError(f"{path}: damaged ({error})") from error
    if "facts" not in found or "digest" not in found:
        raise SnapshotError(f"{path}: not a state saved by jitalloc")
    text, digest = str(found.pop("facts")), str(found.pop("digest"))
    try:
        facts = json.loads(text)
    except ValueError as error:
        raise SnapshotError(f"{path}: not a state saved by jitalloc") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise SnapshotError(f"{path}: not a state saved by jitalloc")
    if facts.get("version") != VERSION:
        raise SnapshotError(
            f"{path}: version {facts.get('version')} of the format, this release reads {VERSION}"
        )
    if facts.get("kind") != kind:
        raise SnapshotError(f"{path}: holds a {facts.get('kind')}, not a {kind}")
    expected = {*names, *(name for name in optional if name in facts)}
    if set(found) != expected:
        raise SnapshotError(f"{path}: holds {sorted(found)}, expected {sorted(expected)}")
    if _digest(text, found) != digest:
        raise SnapshotError(f"{path}: the checksum does not match, the file is damaged")
    return facts, found
