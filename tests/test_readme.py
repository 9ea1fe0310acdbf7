"""README says what the committed results say."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from bench import readme

TEXT = readme.README.read_text()


def test_tables_are_those_of_the_committed_json() -> None:
    measured = {path.stem for path in readme.RESULTS.glob("*.json")}
    assert set(re.findall(r"<!-- (\w+) -->\n\|", TEXT)) == {"demo"} | measured
    assert readme.updated(TEXT) == TEXT


def test_every_file_it_names_is_there() -> None:
    for name in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert Path(readme.README.parent, name).exists(), name


def test_examples_are_python() -> None:
    blocks = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    assert len(blocks) == 6
    for block in blocks:
        ast.parse(block)
