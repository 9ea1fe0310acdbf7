"""README and the pages of benchmarks say what the committed results say."""

from __future__ import annotations

import re

from bench import readme

TEXTS = {document: document.read_text() for document in readme.DOCUMENTS}


def test_tables_are_those_of_the_committed_json() -> None:
    measured = {path.stem for path in readme.RESULTS.glob("*.json") if not path.stem.startswith("gpu-")}
    shown = [name for text in TEXTS.values() for name in re.findall(r"<!-- (\w+) -->\n\|", text)]
    assert sorted(shown) == sorted({*readme.DEMOS, *readme.SHORT} | measured)
    for text in TEXTS.values():
        assert readme.updated(text) == text


def test_short_tables_have_four_rows_of_two_digits() -> None:
    for name in (*readme.SHORT, "demo_short"):
        assert len(readme.rendered(name).splitlines()) == 2 + 4, name
    assert [readme.short(value) for value in (10.776, 0.0612, 1.0, 254.9, 3, "1e7")] == [
        "11", "0.061", "1", "250", 3, "1e7",
    ]  # fmt: skip
