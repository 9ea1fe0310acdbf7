"""Every public class of the pieces has an example in its docstring, and all examples run and print what they say.

In them `torch`, `mt2o_ext` and what the package of the class exports are there.
"""

from __future__ import annotations

import doctest
import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

import mt2o_ext
from mt2o_ext import (
    WeightedBackward,
    contrib,
    masks,
    models,
    pareto,
    priority,
    scalarization,
    transfer,
    variational,
    weighting,
)
from mt2o_ext.gradients import layers
from mt2o_ext.pareto import learned

PACKAGES: list[ModuleType] = [
    weighting,
    contrib,
    transfer,
    scalarization,
    priority,
    pareto,
    learned,
    models,
    variational,
    masks,
    layers,
]


def exported(package: ModuleType) -> dict[str, Any]:
    names = getattr(package, "__all__", None) or [name for name in vars(package) if not name.startswith("_")]
    return {name: getattr(package, name) for name in names}


def public() -> Iterator[tuple[ModuleType, str, Any]]:
    for package in PACKAGES:
        for name, member in exported(package).items():
            if getattr(member, "__module__", "").startswith(package.__name__) or inspect.isfunction(member):
                yield package, name, member


MEMBERS = [(package, name, member) for package, name, member in public() if "mt2o_ext" in member.__module__]
CLASSES = [(package, name, member) for package, name, member in MEMBERS if inspect.isclass(member)]


def namespace(package: ModuleType) -> dict[str, Any]:
    around = exported(weighting) if package is contrib else {}
    around |= {"WeightedBackward": WeightedBackward} if package is layers else {}
    return {"torch": torch, "mt2o_ext": mt2o_ext} | around | exported(package)


def test_there_are_many() -> None:
    assert len(CLASSES) > 75 and len(MEMBERS) > len(CLASSES)


@pytest.mark.parametrize("cls", [each for *_, each in CLASSES], ids=[name for _, name, _ in CLASSES])
def test_every_public_class_has_an_example(cls: type) -> None:
    assert "\nExample:\n    >>> " in (inspect.getdoc(cls) or "")
    assert cls.__doc__ is not None, "its own docstring, not that of a base"


@pytest.mark.parametrize(
    ("package", "member"), [(package, member) for package, _, member in MEMBERS], ids=[name for _, name, _ in MEMBERS]
)
def test_the_examples_run(package: ModuleType, member: Any) -> None:
    names = namespace(package)
    finder, runner, said = doctest.DocTestFinder(exclude_empty=True), doctest.DocTestRunner(verbose=False), []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for test in finder.find(member, member.__name__, globs=names):
            runner.run(test, out=said.append)
    assert runner.failures == 0, "".join(said)
    assert runner.tries > 0 or ">>>" not in (member.__doc__ or ""), "its example was not found"
