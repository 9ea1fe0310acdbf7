"""Weightings that learn from what only the user can tell: the end of an epoch, the losses after a step."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from mt2o_ext import MT2OFused, WeightedBackward
from mt2o_ext.gradients.weigher import PATIENCE
from mt2o_ext.weighting import DWA, FAMO, RLW, STCH, CAGrad, Ema, GradNorm, Weighting
from support.optim.towers import Towers, batch_of, weighted

LEARNING = {"DWA": DWA, "STCH": STCH, "GradNorm": lambda: GradNorm(first_epoch=True), "Ema of DWA": lambda: Ema(DWA())}


class Loop:
    """The same loop with each of the classes that take a weighting."""

    def __init__(self, kind: str, weighting: Weighting) -> None:
        self.model = Towers()
        options: dict[str, Any] = {"num_tasks": 3, "weighting": weighting}
        self.made: Any
        if kind == "weighted":
            self.made = weighted(self.model, weighting)
        elif kind == "mt2o":
            self.made = MT2OFused(
                self.model.parameters(), num_subproblems=1, preferences=[[0.2, 0.3, 0.5]], lr=1e-2, **options
            )
        else:
            self.made = WeightedBackward(self.model.groups(), **options)
        self.kind = kind
        self.sgd = torch.optim.SGD(self.model.parameters(), lr=1e-2)
        self.batch = batch_of(0)

    def step(self) -> None:
        if self.kind == "backward":
            self.sgd.zero_grad()
            self.made(self.model.losses(self.batch))
            self.sgd.step()
        else:
            self.made.backward(self.model.losses(self.batch))
            self.made.step()

    def feedback(self) -> None:
        losses = torch.stack(self.model.losses(self.batch))
        self.made.feedback(losses)


def warned(run: Callable[[], object]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return [str(warning.message) for warning in caught]


def steps(loop: Loop, number: int) -> None:
    for _ in range(number):
        loop.step()


KINDS = pytest.mark.parametrize("kind", ["weighted", "mt2o", "backward"])


@KINDS
@pytest.mark.parametrize("name", LEARNING)
def test_an_epoch_without_end_is_noticed_once(kind: str, name: str) -> None:
    loop = Loop(kind, LEARNING[name]())
    assert warned(lambda: steps(loop, PATIENCE - 1)) == []
    [warning] = warned(lambda: steps(loop, PATIENCE))
    assert "epoch_end()" in warning
    assert name.removeprefix("Ema of ") in warning


@KINDS
def test_who_counts_epochs_is_not_warned(kind: str) -> None:
    loop = Loop(kind, DWA())
    steps(loop, 2)
    loop.made.epoch_end()
    assert warned(lambda: steps(loop, PATIENCE)) == []


@KINDS
def test_feedback_that_did_not_come_is_noticed_once(kind: str) -> None:
    loop = Loop(kind, FAMO())
    assert warned(loop.step) == []
    [warning] = warned(lambda: steps(loop, 2))
    assert "feedback(losses)" in warning
    assert "FAMO" in warning


@KINDS
def test_who_gives_feedback_is_not_warned(kind: str) -> None:
    loop = Loop(kind, FAMO())
    logits = loop.made._tasks.weigher.weighting.state_dict()["logits"].clone()
    assert warned(lambda: [(loop.step(), loop.feedback()) for _ in range(3)]) == []  # type: ignore[func-returns-value]
    assert not torch.equal(loop.made._tasks.weigher.weighting.state_dict()["logits"], logits)


@KINDS
@pytest.mark.parametrize("weighting", [CAGrad, RLW])
def test_others_need_no_calls(kind: str, weighting: type[Weighting]) -> None:
    loop = Loop(kind, weighting())
    assert warned(lambda: steps(loop, PATIENCE + 1)) == []
    with pytest.raises(RuntimeError, match="learns nothing"):
        loop.feedback()


def test_a_copy_remembers_what_was_said() -> None:
    loop = Loop("weighted", FAMO())
    assert len(warned(lambda: steps(loop, 2))) == 1
    other = copy.deepcopy(loop)
    assert warned(lambda: steps(other, 2)) == []
