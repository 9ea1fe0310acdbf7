"""What torch.optim.Optimizer asks for is asked of every optimizer class: one model, one task."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from mt2o_ext import MT2OFused, WeightedFused
from support.optim import problems
from support.optim.problems import TWINS, Kind, Single, Twin


@pytest.fixture(params=[MT2OFused, WeightedFused], ids=lambda kind: kind.__name__)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture(params=["rows", "vertices"])
def front(request: pytest.FixtureRequest) -> str:
    """Of an MT2OFused: what is true of any front is tested with both."""
    return request.param


@pytest.fixture
def single(kind: Kind) -> Single:
    """``single(params, **options)``: one task, one model."""
    return partial(problems.single, kind=kind)


@pytest.fixture
def twins(kind: Kind) -> dict[str, Twin]:
    """The base rules by name, each with its optimizer of torch."""
    return {name: replace(twin, kind=kind) for name, twin in TWINS.items()}
