"""The project's pages as a reader sees them: parsed by the rules that web pages of Markdown are made with."""

from __future__ import annotations

import ast
import doctest
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from markdown_it.token import Token

markdown_it = pytest.importorskip(
    "markdown_it", reason="pages are parsed by markdown-it-py: pip install mt2o_ext[test]"
)

ROOT = Path(__file__).parents[2]
HTML = {"<sub>", "</sub>"}  # that is meant; any other is a formula's "<", which a browser would hide
LANGUAGES = {"python", "pycon"}  # of fences: programs, and sessions with answers; commands are indented

# What nobody would write in a program or a command: headings, rows of tables, markers of generated tables, fences.
PROSE = re.compile(r"\s*(#{2,6} \S|\|.*\|\s*$|<!-- \w+ -->|```)")


def tracked_pages() -> list[Path]:
    """Every .md file that git tracks; away from a checkout, every one that is there."""
    if (ROOT / ".git").exists():
        names = subprocess.run(["git", "ls-files", "-z", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True)
        return [ROOT / name for name in names.stdout.split("\0") if name]
    return [path for path in ROOT.rglob("*.md") if not any(part.startswith(".") for part in path.parts)]


@dataclass(frozen=True)
class Block:
    """A block of code: its language, its text, and the line that it begins in (from 1)."""

    language: str
    text: str
    line: int


@dataclass(frozen=True)
class Page:
    """One page.  Line numbers in messages begin with 1."""

    text: str

    @cached_property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @cached_property
    def tokens(self) -> list[Token]:
        return markdown_it.MarkdownIt("commonmark").enable("table").parse(self.text)

    @cached_property
    def inline(self) -> list[tuple[int, Token]]:
        """(line, token) of all that stands in paragraphs, headings and cells."""
        return [(t.map[0] + 1, child) for t in self.tokens if t.map and t.children for child in t.children]

    def all_of(self, *kinds: str) -> Iterator[tuple[int, Token]]:
        for token in self.tokens:
            if token.type in kinds and token.map:
                yield token.map[0] + 1, token

    @cached_property
    def blocks(self) -> list[Block]:
        return [
            Block(token.info if token.type == "fence" else "", token.content, line)
            for line, token in self.all_of("fence", "code_block")
        ]

    @cached_property
    def headings(self) -> list[tuple[int, int, str]]:
        """(line, level, text), the text without its markup."""
        found = []
        for at, token in enumerate(self.tokens):
            if token.type == "heading_open" and token.map:
                children = self.tokens[at + 1].children or []
                found.append((token.map[0] + 1, int(token.tag[1:]), "".join(child.content for child in children)))
        return found

    @cached_property
    def anchors(self) -> list[str]:
        """Of the headings, as GitHub makes them."""
        seen: list[str] = []
        for _, _, text in self.headings:
            plain = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            seen.append(plain if plain not in seen else f"{plain}-{seen.count(plain)}")
        return seen

    @cached_property
    def links(self) -> list[tuple[int, str]]:
        """(line, address) of links and pictures."""
        found = [(line, token.attrGet("href") or token.attrGet("src")) for line, token in self.inline]
        return [(line, str(address)) for line, address in found if address is not None]

    @cached_property
    def code(self) -> list[str]:
        """All blocks, and all that stands between backticks."""
        spans = [token.content for _, token in self.inline if token.type == "code_inline"]
        return [block.text for block in self.blocks] + spans

    def outside_of_code(self) -> Iterator[tuple[int, str]]:
        inside = set()
        for line, token in self.all_of("fence", "code_block"):
            inside |= set(range(line, (token.map or [0, 0])[1] + 1))
        for line, text in enumerate(self.lines, 1):
            if line not in inside:
                yield line, text

    # ------------------------------------------------------------------ what can go wrong
    def faults(self) -> list[str]:
        """Where the page does not look as its text was meant to: nothing, for a good page."""
        checks = (self._fences, self._code, self._headings, self._tables, self._lists, self._leftovers)
        return [f"line {line}: {what}" for check in checks for line, what in check()]

    def _fences(self) -> Iterator[tuple[int, str]]:
        """Each fence has a line of its own, and they open and close by turns."""
        is_open = False
        for line, text in enumerate(self.lines, 1):
            if "```" not in text:
                continue
            if not re.fullmatch(r"\s*```" if is_open else r"\s*```\w+", text):
                kind = "a closing" if is_open else "an opening"
                yield line, f"expected {kind} fence on a line of its own, got {text!r}"
            is_open = not is_open
        if is_open:
            yield len(self.lines), "a fence is not closed"

    def _code(self) -> Iterator[tuple[int, str]]:
        """No block has swallowed anything, and what says that it is Python is."""
        for block in self.blocks:
            for at, text in enumerate(block.text.splitlines()):
                if PROSE.match(text):
                    yield block.line + at, f"a block of code holds {text!r}"
        for line, token in self.all_of("fence"):
            if token.info not in LANGUAGES:
                yield line, f"expected a fence of {', '.join(sorted(LANGUAGES))}, got {token.info!r}"
                continue
            session = token.info == "pycon"
            programs = [each.source for each in doctest.DocTestParser().get_examples(token.content)]
            if session and not programs:
                yield line, "a session without a prompt"
            try:
                ast.parse("".join(programs) if session else token.content)
            except SyntaxError as error:
                yield line + (error.lineno or 0), f"not Python: {error.msg}"

    def _headings(self) -> Iterator[tuple[int, str]]:
        """One title, first of all; levels without gaps; every line that looks like a heading is one."""
        levels = [level for _, level, _ in self.headings]
        if levels[:1] != [1] or levels.count(1) != 1 or self.tokens[0].type != "heading_open":
            yield 1, f"expected one title (# ...) at the beginning, got headings of the levels {levels}"
        for (_, before, _), (line, level, text) in zip(self.headings, self.headings[1:], strict=False):
            if level > before + 1:
                yield line, f"{text!r} is of level {level}, right below one of level {before}"
        there = {line for line, _, _ in self.headings}
        for line, text in self.outside_of_code():
            if re.match(r"\s*#{1,6} ", text) and line not in there:
                yield line, f"no heading: {text!r}"
        for line, token in self.all_of("heading_open"):
            if not token.markup.startswith("#"):
                yield line, "a paragraph above a line of dashes is a heading"

    def _tables(self) -> Iterator[tuple[int, str]]:
        """Every line that begins with a bar is a row of a table, with as many cells as the head."""
        cells: dict[int, int] = {}  # that a line should have
        for line, token in self.all_of("table_open"):
            width = number_of_cells(self.lines[line - 1])
            cells |= dict.fromkeys(range(line, (token.map or [0, 0])[1] + 1), width)
        for line, text in self.outside_of_code():
            if text.lstrip().startswith("|") != (line in cells):
                yield line, f"{'no row' if line not in cells else 'a row that does not begin with a bar'}: {text!r}"
            elif line in cells and number_of_cells(text) != cells[line]:
                yield line, f"expected {cells[line]} cells, got {number_of_cells(text)}: {text!r}"

    def _lists(self) -> Iterator[tuple[int, str]]:
        """Every line that looks like an item is one, and a list begins after an empty line."""
        items = {line for line, _ in self.all_of("list_item_open")}
        for line, text in self.outside_of_code():
            if re.match(r"\s*([*+-]|\d+[.)]) ", text) and line not in items:
                yield line, f"no item of a list: {text!r}"
        for line, token in self.all_of("bullet_list_open", "ordered_list_open"):
            if token.level == 0 and line > 1 and self.lines[line - 2].strip():
                yield line, f"a list in the middle of a paragraph: {self.lines[line - 1]!r}"

    def _leftovers(self) -> Iterator[tuple[int, str]]:
        """No markup is left over in the text, and no formula is taken for markup."""
        for line, token in self.inline:
            if token.type == "text" and re.search(r"`|\*\*|\]\(|\$|:\w+:$", token.content):
                yield line, f"markup is left over: {token.content!r}"
            elif token.type == "html_inline" and token.content not in HTML:
                yield line, f"taken for HTML: {token.content!r}"
            elif token.type == "em_open":
                yield line, "emphasis by a single * or _, which formulas get by mistake"
            elif token.type == "image" and not token.content:
                yield line, "a picture without a description"
        marks = [(line, token.content.strip()) for line, token in self.all_of("html_block")]
        for at, (line, mark) in enumerate(marks):
            if not re.fullmatch(r"<!-- end -->" if at % 2 else r"<!-- (?!end)\w+ -->", mark):
                yield line, f"expected a pair of <!-- name --> and <!-- end -->, got {mark!r}"
        if len(marks) % 2:
            yield marks[-1][0], "expected a pair of <!-- name --> and <!-- end -->, got an odd number"


def number_of_cells(row: str) -> int:
    """As GitHub cuts a row: at every bar without a backslash, also inside of code."""
    return len(re.findall(r"(?<!\\)\|", row.strip())) - 1
