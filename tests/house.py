"""The files of the package, and what they import: what the rules of the house are held against."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "jitalloc"


def sources(folder: Path) -> list[Path]:
    hidden = {part for path in folder.iterdir() for part in [path.name] if part.startswith(".")}
    skip = {*hidden, "build", "dist", "node_modules", "env", "venv"}
    return sorted(
        path
        for path in folder.rglob("*.py")
        if not skip.intersection(path.relative_to(folder).parts)
    )


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it, by its full name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module != "jitalloc":  # which hands on modules, too
                yield node.module or ""
            yield from (f"{node.module}.{each.name}" for each in node.names)


MODULES = sources(PACKAGE)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))
