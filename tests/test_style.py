"""One style in the whole package, where ruff has no rule for it: imports, first words, messages, documentation.

What is not yet like the rest stands in ruff's per-file-ignores, which this test reads.
"""

from __future__ import annotations

import ast
import fnmatch
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "mt2o_ext").rglob("*.py"))
NAMES = [path.relative_to(ROOT).as_posix() for path in FILES]
TREES = {name: ast.parse(path.read_text()) for name, path in zip(NAMES, FILES, strict=True)}


def braced(pattern: str) -> list[str]:
    """The patterns that one with {a,b} stands for."""
    found = re.match(r"(.*)\{([^}]*)\}(.*)", pattern)
    return [found[1] + each + found[3] for each in found[2].split(",")] if found else [pattern]


IGNORED = re.findall(r'^"(mt2o_ext/[^"]*)" = \["D"\]', (ROOT / "pyproject.toml").read_text(), re.M)
STYLED = [
    name for name in NAMES if not any(fnmatch.fnmatch(name, each) for pattern in IGNORED for each in braced(pattern))
]
EACH = pytest.mark.parametrize("name", STYLED)


def test_most_of_the_package_is_looked_at() -> None:
    assert len(STYLED) > 80
    assert braced("a/{b,c}.py") == ["a/b.py", "a/c.py"]


@pytest.mark.parametrize("name", NAMES)
def test_the_package_imports_itself_by_relative_names(name: str) -> None:
    absolute = [
        f"line {node.lineno}"
        for node in ast.walk(TREES[name])
        if (isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] == "mt2o_ext")
        or (isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "mt2o_ext" for alias in node.names))
    ]
    assert absolute == []


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (text := ast.get_docstring(node)):
            yield getattr(node, "lineno", 1), text


@EACH
def test_docstrings_begin_with_a_noun_or_a_verb(name: str) -> None:
    riddles = r"(What|Where|Which|How|Whether|When|Why|Whatever)\b"
    assert [f"line {line}: {text[:60]}" for line, text in docstrings(TREES[name]) if re.match(riddles, text)] == []


@EACH
def test_docstrings_have_sections_and_no_sentences_of_them(name: str) -> None:
    """Raises and Returns are sections, with one form."""
    found = [
        f"line {line}: {match[0]}"
        for line, text in docstrings(TREES[name])
        if (match := re.search(r"\bRaises \w+Error", text))
    ]
    assert found == []


@EACH
def test_messages_tell_what_was_expected(name: str) -> None:
    """Never what something must be: "expected X, got Y: do Z"."""
    found = []
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            text = ast.unparse(node.exc.args[0])
            if re.search(r"\bmust (not )?(be|have)\b", text):
                found.append(f"line {node.lineno}: {text[:80]}")
    assert found == []


@EACH
def test_every_public_method_is_documented_where_it_is_declared(name: str) -> None:
    """Ruff's D102 asks for a docstring at each override too."""
    if name.endswith("__main__.py"):
        return
    module = importlib.import_module(name.removesuffix("/__init__.py").removesuffix(".py").replace("/", "."))
    missing = []
    for cls in vars(module).values():
        if not (inspect.isclass(cls) and cls.__module__ == module.__name__ and not cls.__name__.startswith("_")):
            continue
        for key, member in vars(cls).items():
            target = getattr(member, "fget", None) or getattr(member, "__func__", None) or member
            if not key.startswith("_") and inspect.isfunction(target) and not inspect.getdoc(getattr(cls, key)):
                missing.append(f"{cls.__name__}.{key}")
    assert missing == []
