"""Every page of the repository, as a reader sees it: nothing is swallowed, every link leads somewhere, what it tells to
run is there, and its numbers are those of the code."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from mt2o_ext import WeightedFused
from mt2o_ext.weighting import register
from support.documents import ROOT, Page, tracked_pages
from tools.variants import MATRIX

PAGES = {path.relative_to(ROOT).as_posix(): Page(path.read_text()) for path in tracked_pages()}
EACH_PAGE = pytest.mark.parametrize("name", PAGES)


@EACH_PAGE
def test_the_page_looks_as_it_was_written(name: str) -> None:
    assert PAGES[name].faults() == []


def test_readme_is_short_and_every_table_has_four_rows() -> None:
    lines = PAGES["README.md"].lines
    assert len(lines) <= 130
    tables = [len(block.splitlines()) - 2 for block in re.findall(r"(?:^\|.*\n)+", PAGES["README.md"].text, re.M)]
    assert tables and set(tables) == {4}


def test_the_pages_are_those_that_readers_are_sent_to() -> None:
    assert {"README.md", "CHANGELOG.md", "docs/weightings.md", "docs/performance.md", "bench/README.md"} <= set(PAGES)


GOOD = """# Title

Some text.

```python
x = 1  # one
```

| a | b |
|---|---|
| 1 | 2 |

* an item

## More

    make it
"""


def test_a_good_page_has_no_faults() -> None:
    assert Page(GOOD).faults() == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("x = 1  # one\n```", "x = 1 # one ```", "line 6: expected a closing fence on a line of its own"),
        ("```python\nx", "```python x", "expected an opening fence on a line of its own"),
        ("\n```\n\n|", "\n\n|", "a fence is not closed"),
        ("x = 1  # one\n```", "x = 1\n\n## Lost\n```", "a block of code holds '## Lost'"),
        ("    make it", "    make it\n    | a | b |", "a block of code holds '| a | b |'"),
        ("x = 1  # one", "x = CAGrad(c=0.4) alone", "line 6: not Python"),
        ("```python", "```pycon", "a session without a prompt"),
        ("```python", "```perl", "expected a fence of pycon, python, got 'perl'"),
        ("# Title\n\n", "", "expected one title"),
        ("## More", "# More", "expected one title"),
        ("## More", "### More", "'More' is of level 3, right below one of level 1"),
        ("## More", "text\n    ## More", "no heading: '    ## More'"),
        ("Some text.", "Some text.\n---", "a paragraph above a line of dashes is a heading"),
        ("|---|---|\n", "", "no row: '| a | b |'"),
        ("| 1 | 2 |", "| 1 |", "expected 2 cells, got 1"),
        ("| 1 | 2 |", "| 1 | |g| |", "expected 2 cells, got 4"),
        ("| 1 | 2 |", "| 1 | 2 |\nmore", "a row that does not begin with a bar: 'more'"),
        ("Some text.", "Some text.\n2. an item", "no item of a list: '2. an item'"),
        ("Some text.", "Some text,\n- that is, none", "a list in the middle of a paragraph"),
        ("Some text.", "Some `text.", "markup is left over: 'Some `text.'"),
        ("Some text.", "Some **text.", "markup is left over"),
        ("Some text.", "See :func:`x`.", "markup is left over: 'See :func:'"),
        ("Some text.", "Where a <b and c> d.", "taken for HTML: '<b and c>'"),
        ("Some text.", "Where a*b and *c are d*.", "emphasis by a single * or _"),
        ("Some text.", "![](x.png)", "a picture without a description"),
        ("| a | b |\n", "<!-- step -->\n| a | b |\n", "expected a pair of <!-- name --> and <!-- end -->"),
        ("Some text.", "<!-- end -->", "expected a pair of <!-- name --> and <!-- end -->"),
    ],
)
def test_what_goes_wrong_is_seen(old: str, new: str, message: str) -> None:
    assert GOOD.count(old) == 1
    faults = Page(GOOD.replace(old, new)).faults()
    assert any(message in fault for fault in faults), faults


# ---------------------------------------------------------------------- where it leads
def broken_links(name: str) -> Iterator[str]:
    for line, address in PAGES[name].links:
        if re.match(r"https?:|mailto:", address):
            continue
        file, _, anchor = address.partition("#")
        target = os.path.normpath(Path(name).parent / file) if file else name
        if file and not (ROOT / target).exists():
            yield f"line {line}: no {target}"
        elif anchor and anchor not in PAGES[target].anchors:
            yield f"line {line}: {target} has no heading #{anchor}"


@EACH_PAGE
def test_links_lead_somewhere(name: str) -> None:
    assert list(broken_links(name)) == []


def test_a_broken_link_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "# A b, c\n\n[here](#a-b-c) [page](../README.md) [lost](lost.md) [part](#part) [web](https://example.org)\n"
    monkeypatch.setitem(PAGES, "docs/x.md", Page(text))
    assert list(broken_links("docs/x.md")) == ["line 3: no docs/lost.md", "line 3: docs/x.md has no heading #part"]


# ---------------------------------------------------------------------- what it tells to run
MAKEFILE = (ROOT / "Makefile").read_text()


def missing_commands(page: Page) -> Iterator[str]:
    """Targets of make, modules and files that code on the page names and that are not there."""
    for code in page.code:
        for target in re.findall(r"\bmake ([a-z][a-z-]*)", code):
            if not re.search(rf"^{target}:", MAKEFILE, re.M):
                yield f"make {target}"
        for module in re.findall(r"\bpython3? -m ([\w.]+)", code):
            package = importlib.util.find_spec(module)
            if package is None or (
                package.submodule_search_locations and not importlib.util.find_spec(f"{module}.__main__")
            ):
                yield f"python -m {module}"
        for path in re.findall(r"(?<![\w/.-])((?:[\w.-]+/)+[\w.-]+\.[a-z]+)\b", code):
            if not re.search(r"NAME|VERSION|DATE|DIR|OUT|build/|dist/", path) and not (ROOT / path).exists():
                yield path


@EACH_PAGE
def test_what_it_tells_to_run_is_there(name: str) -> None:
    assert list(missing_commands(PAGES[name])) == []


def test_a_missing_command_is_seen() -> None:
    modules = "python -m mt2o_ext; python -m mt2o_ext.ops; python -m bench.none"
    text = f"# T\n\n    make coffee; make test\n    {modules}\n\n`docs/none.py`, `csrc/core/NAME.h`\n"
    found = list(missing_commands(Page(text)))
    assert found == ["make coffee", "python -m mt2o_ext.ops", "python -m bench.none", "docs/none.py"]


# ---------------------------------------------------------------------- what it counts
WORDS = [
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety", "hundred"]
NUMBER = rf"(\d+|(?:{'|'.join(TENS)})(?:-(?:{'|'.join(WORDS[:9])}))?|{'|'.join(WORDS)})"


def value(number: str) -> int:
    if number.isdigit():
        return int(number)
    tens, _, ones = number.partition("-")
    if tens in TENS:
        return 20 + 10 * TENS.index(tens) + (WORDS.index(ones) + 1 if ones else 0)
    return WORDS.index(number) + 1


def counted(text: str, things: str) -> list[int]:
    """Numbers right before these things, with at most two words between: "forty published weightings"."""
    flat = re.sub(r"\s+", " ", text)
    return [value(n.lower()) for n in re.findall(rf"\b{NUMBER} (?:[a-z-]+ ){{0,2}}{things}\b", flat, re.I)]


def test_numbers_are_found() -> None:
    text = "any of forty published weightings, 33\nweightings, Thirty-three weightings, three kinds of new weightings"
    assert counted(text, "weightings") == [40, 33, 33]


def usable_weightings() -> int:
    """How many of the names an optimizer takes."""
    count = 0
    for make in register.values():
        try:
            WeightedFused([nn.Parameter(torch.zeros(1))], num_tasks=2, weighting=make())
        except NotImplementedError:  # wants two mini-batches
            continue
        count += 1
    return count


def test_the_number_of_weightings() -> None:
    found = {name: counted(page.text, "weightings") for name, page in PAGES.items()}
    assert len(found["README.md"]) == 1
    assert {number for numbers in found.values() for number in numbers} == {usable_weightings()}


def test_the_architectures_that_are_compiled() -> None:
    archs = {arch.removesuffix("+PTX") for variant in MATRIX if variant.archs for arch in variant.archs.split(";")}
    assert counted(PAGES["docs/performance.md"].text, "architectures of the wheels") == [len(archs)]
    [in_ci] = re.findall(r"^ARCHS := (.*)", (ROOT / "Makefile").read_text(), re.M)
    [named] = re.findall(r"compiled for\s+(sm_\d+)\s+and\s+(sm_\d+)\s+in\s+CI", PAGES["docs/performance.md"].text)
    assert list(named) == [f"sm_{arch.removesuffix('+PTX').replace('.', '')}" for arch in in_ci.split(";")]
