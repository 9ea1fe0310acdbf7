"""README and the page of the benchmarks say what the committed results say."""

from __future__ import annotations

import re

from bench import readme

TEXTS = {document: document.read_text() for document in readme.DOCUMENTS}


def test_tables_are_those_of_the_committed_json() -> None:
    measured = {path.stem for path in readme.RESULTS.glob("*.json") if not path.stem.startswith("gpu-")}
    shown = [name for text in TEXTS.values() for name in re.findall(r"<!-- (\w+) -->\n\|", text)]
    assert sorted(shown) == sorted({"demo", "connection_strength", *readme.SELECTIONS} | measured)
    for text in TEXTS.values():
        assert readme.updated(text) == text
