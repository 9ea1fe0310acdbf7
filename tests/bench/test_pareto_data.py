"""Loaders look at what they read, and refuse what is not the data that they are for."""

from __future__ import annotations

import lzma
import os
import pickle
import struct
from pathlib import Path

import pytest
import torch

from bench.pareto.problems import sources, text
from bench.pareto.problems.sources import BrokenDataError, parse_diamonds, parse_idx


def idx(shape: tuple[int, ...], numbers: bytes) -> bytes:
    return struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape) + numbers


def test_idx_files_are_read_and_broken_ones_refused() -> None:
    content = idx((2, 3), bytes(range(6)))
    assert torch.equal(parse_idx(content, (2, 3)), torch.arange(6, dtype=torch.uint8).view(2, 3))
    for broken in (content[:-1], content + b"\0", idx((3, 2), bytes(6)), b"\0\0\x0d" + content[3:], b""):
        with pytest.raises(BrokenDataError, match="expected an IDX file"):
            parse_idx(broken, (2, 3))


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("harm",)


def test_diamonds_are_refused_when_they_are_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BrokenDataError, match=r"asks for posix\.mkdir"):
        parse_diamonds(lzma.compress(pickle.dumps(Harmful())))
    assert not (tmp_path / "harm").exists()
    with pytest.raises(BrokenDataError, match="compressed by xz"):
        parse_diamonds(b"<html>")
    with pytest.raises(BrokenDataError, match="compressed by xz"):
        parse_diamonds(lzma.compress(b"\x80"))


def test_missing_files_are_named_with_the_way_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "FETCHED", tmp_path)
    monkeypatch.setattr(sources, "FASHION", Path("no/such/folder"))
    monkeypatch.setattr(sources, "find_spec", lambda name: None)
    for loader in (sources.fashion_mnist, sources.diamonds):
        with pytest.raises(FileNotFoundError, match="make pareto-data"):
            loader()


def test_text_that_is_too_short_is_refused_and_parts_do_not_overlap() -> None:
    with pytest.raises(BrokenDataError, match="at least 300000 characters"):
        text.encode({"a": "short"})
    parts, entropy = text.encode({"letters": "abcd" * 80_000, "more": "e" * 80_000})
    assert sum(map(len, parts.values())) == 400_000
    assert [round(len(part) / 400_000, 2) for part in parts.values()] == [0.8, 0.1, 0.1]
    assert 0 < entropy < 2
