"""One `.npz` file for a complete state: versioned, checksummed, written in one step."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from jitalloc.errors import SnapshotError

FORMAT: Final = "jitalloc"
VERSION: Final = 3

SAVED_IDS: Final = (int, str, bytes, bool, float, type(None))


def uncopied(why: str) -> Callable[[Any, Any], NoReturn]:
    """Return a `__reduce_ex__` for what `pickle` and `copy` have to refuse, and what to do."""

    def refuse(self: Any, _protocol: Any) -> NoReturn:
        name = type(self).__name__
        raise SnapshotError(f"a {name} cannot be copied or pickled: {why}")

    return refuse


def shallow(self: Any) -> NoReturn:
    """Refuse `copy.copy` of what holds pages of a pool."""
    name = type(self).__name__
    text = "two would hold the same pages; copy.deepcopy takes the pool along"
    raise SnapshotError(f"a {name} cannot be copied without its pool: {text}")


def check_step(found: int, expected: int) -> None:
    """Raise where a pool is not at the step of what was pickled or copied with it."""
    if found != expected:
        text = f"the pool is at step {found}, what stands on it at {expected}"
        raise SnapshotError(f"changed while it was copied or pickled: {text}")


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


def text_of_id(seq_id: Hashable) -> str:
    """Return the id of a sequence, or the name of a namespace, as a Python literal."""
    if isinstance(seq_id, np.integer):  # as dict keys the two are one: it is found by either
        return repr(int(seq_id))
    if type(seq_id) is UUID:
        return f"{{'uuid': {seq_id.hex!r}}}"  # no id is a dict, for that is not hashable
    simple = type(seq_id) in SAVED_IDS
    if type(seq_id) is tuple:
        return "(" + "".join(text_of_id(part) + "," for part in seq_id) + ")"
    if not simple or (isinstance(seq_id, float) and not np.isfinite(seq_id)):
        raise SnapshotError(f"a sequence id of type {type(seq_id).__name__} cannot be saved")
    return repr(seq_id)


def id_of_text(text: str) -> Hashable:
    """Return the id that `text_of_id` wrote."""
    return _with_uuids(ast.literal_eval(text))


def _with_uuids(value: Any) -> Hashable:
    if type(value) is tuple:
        return tuple(_with_uuids(part) for part in value)
    return UUID(str(value["uuid"])) if type(value) is dict else value
