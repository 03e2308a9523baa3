"""What the documentation promises: its examples run, and it covers every public name."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jitalloc
from jitalloc import _jit

ROOT = Path(__file__).parents[1]
NAMES = {"jitalloc": jitalloc, "np": np}
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL


def modules() -> list[str]:
    found = pkgutil.walk_packages(jitalloc.__path__, "jitalloc.")
    return sorted(each.name for each in found if not each.name.endswith("__main__"))


# Kernels as plain Python return what NumPy makes of the numbers: np.int64(2), not 2.
compiled = pytest.mark.skipif(_jit.JIT_DISABLED, reason="examples show compiled kernels")


@compiled
@pytest.mark.parametrize("module", modules())
def test_the_examples_of_docstrings_run(module: str) -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    for test in finder.find(importlib.import_module(module), extraglobs=NAMES):
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder()
    for shown in (jitalloc.PagePool, jitalloc.PagedKVCache):
        assert sum(len(test.examples) for test in finder.find(shown, globs={})) > 5


@compiled
def test_the_examples_of_the_readme_run() -> None:
    text = (ROOT / "README.md").read_text()
    test = doctest.DocTestParser().get_doctest(text, {}, "README.md", "README.md", 0)
    assert len(test.examples) > 3
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    runner.run(test)
    assert runner.summarize(verbose=False).failed == 0


# Every public name.


def section(text: str, title: str) -> str:
    """The body of a NumPy-style section; empty where there is none."""
    found = re.search(
        rf"^{title}\n-{{{len(title)}}}\n(.*?)(?=^\w[^\n]*\n---|\Z)", text, re.M | re.S
    )
    return found.group(1) if found else ""


def listed(text: str, title: str) -> set[str]:
    """The names that a section explains."""
    lines = section(text, title).splitlines()
    heads = [line for line in lines if line and not line.startswith(" ")]
    return {name.strip(" *") for head in heads for name in head.split(" : ")[0].split(",")}


def doc(thing: Any) -> str:
    text = inspect.getdoc(thing) or ""
    # What object, type and the standard exceptions would lend is no documentation of ours.
    return "" if thing.__doc__ is None else text


def public_members() -> dict[str, Any]:
    """Every function, method and property that a user can reach by public names."""
    found = {}
    for name in jitalloc.__all__:
        thing = getattr(jitalloc, name)
        if inspect.isfunction(thing):
            found[name] = thing
        if inspect.isclass(thing):
            for key, member in inspect.getmembers(thing):
                home = str(getattr(getattr(member, "fget", member), "__module__", ""))
                reachable = inspect.isroutine(member) or isinstance(member, property)
                if reachable and not key.startswith("_") and home.startswith("jitalloc"):
                    found[f"{name}.{key}"] = member
    return found


MEMBERS = public_members()
CLASSES = [name for name in jitalloc.__all__ if inspect.isclass(getattr(jitalloc, name))]


def test_there_are_members() -> None:
    assert {"warmup", "PagePool.alloc", "PagePool.num_free", "PagedKVCache.evict_to"} <= set(
        MEMBERS
    )


def test_the_public_names_are_complete() -> None:
    assert len(jitalloc.__all__) == len(set(jitalloc.__all__))
    reachable = {name for name in vars(jitalloc) if not name.startswith("_")}
    submodules = {each.name for each in pkgutil.iter_modules(jitalloc.__path__)}
    extra = reachable - set(jitalloc.__all__) - submodules
    assert extra <= {"PackageNotFoundError", "version"}


@pytest.mark.parametrize("name", CLASSES)
def test_every_public_class_is_documented(name: str) -> None:
    thing = getattr(jitalloc, name)
    text = doc(thing)
    assert len(text.splitlines()[0]) > 10
    fields = set(getattr(thing, "_fields", ()) or getattr(thing, "__dataclass_fields__", ()))
    assert fields == listed(text, "Attributes") or not fields
    if name in ("PagePool", "PagedKVCache", "BlockTables", "SlotAllocator", "SlotPrefixCache"):
        parameters = set(inspect.signature(thing).parameters)
        assert listed(text, "Parameters") == parameters


@pytest.mark.parametrize("name", MEMBERS)
def test_every_public_member_is_documented(name: str) -> None:
    member = MEMBERS[name]
    text = doc(member)
    assert text, "no docstring"
    summary = text.splitlines()[0]
    assert summary.endswith((".", "?")), summary
    if isinstance(member, property):
        return
    signature = inspect.signature(member)
    parameters = {key for key in signature.parameters if key not in ("self", "cls")}
    delegated = "see `" in text
    if not delegated:
        assert listed(text, "Parameters") == parameters
    returns = signature.return_annotation
    if returns not in (None, "None", inspect.Signature.empty) and not delegated:
        assert section(text, "Returns") or summary.startswith(("Return", "Whether"))
