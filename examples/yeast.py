"""The labels of yeast genes: a file in the package river, which is read without importing the package."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import torch
from torch import Tensor

LABELS = 14


def yeast_file() -> Path | None:
    """The data: 2,417 genes with 103 features and 14 labels; None where river is not installed."""
    package = importlib.util.find_spec("river")
    places = [] if package is None else list(package.submodule_search_locations or [])
    found = [Path(place, "datasets", "yeast.csv.gz") for place in places]
    return next((path for path in found if path.exists()), None)


def yeast(path: Path, train: int) -> tuple[Tensor, Tensor]:
    """Features [N, 103], standardised on the first ``train`` rows of a random order, and labels [N, 14] of 0 and 1."""
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()[1:]
    table = torch.tensor([[float(number) for number in line.split(",")] for line in lines])
    table = table[torch.randperm(len(table), generator=torch.Generator().manual_seed(0))]
    x, y = table[:, :-LABELS], table[:, -LABELS:]
    return (x - x[:train].mean(0)) / x[:train].std(0), y
