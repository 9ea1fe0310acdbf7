"""Schedules, bad settings, and the user's own matrices."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from mt2o_ext.transfer import (
    MGD,
    Constant,
    CosineDecay,
    CrossLearning,
    DistanceDecrease,
    ExponentialDecay,
    GumbelPrior,
    Hat,
    Identity,
    LinearDecay,
    Mean,
    Neighbours,
    Schedule,
    Spectral,
    TransferContext,
    UserTransfer,
    WithLearningRate,
    as_transfer_rule,
    check_mix,
)
from support.quadratics import line_preferences
from support.transfer_problems import (
    assert_close,
    centred_gram,
    context,
    matrices,
    normal,
)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Constant(0.3), [0.3, 0.3, 0.3, 0.3]),
        (LinearDecay(0.8, steps=100, end=0.4), [0.8, 0.6, 0.4, 0.4]),
        (CosineDecay(0.8, steps=200), [0.8, 0.8 * (1 + math.sqrt(0.5)) / 2, 0.4, 0.0]),
        (ExponentialDecay(0.8, half_life=50), [0.8, 0.4, 0.2, 0.05]),
        (ExponentialDecay(0.8, half_life=50, end=0.1), [0.8, 0.4, 0.2, 0.1]),
    ],
)
def test_schedules_over_steps(schedule, expected):
    preferences = line_preferences(2)
    assert [schedule(context(preferences, step=step)) for step in (0, 50, 100, 200)] == pytest.approx(expected)


def test_the_schedule_with_the_learning_rate():
    preferences, schedule = line_preferences(2), WithLearningRate(0.8)
    taus = [schedule(context(preferences, lr=lr, initial_lr=0.1)).item() for lr in (0.1, 0.05, 0.0, 1.0)]
    assert taus == pytest.approx([0.8, 0.4, 0.0, 1.0])
    with pytest.raises(ValueError, match="initial learning rate"):
        schedule(context(preferences, initial_lr=0.0))


def test_a_rule_follows_its_schedule():
    preferences = line_preferences(5)
    rule = Mean(LinearDecay(0.8, steps=100))
    rule.bind(preferences)
    assert_close(rule.matrix(context(preferences, step=50)), matrices(Mean(0.4), preferences, [None])[0][0])
    assert rule.matrix(context(preferences, step=100)) is None
    rule = Mean(WithLearningRate(0.8))
    rule.bind(preferences)
    assert_close(rule.matrix(context(preferences, lr=0.05)), matrices(Mean(0.4), preferences, [None])[0][0])


# Bad settings


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Hat(degree=0), ValueError, "degree >= 1, got 0"),
        (lambda: Hat(degree=1.0), TypeError, "degree as an int"),
        (lambda: Hat(rate=1.5), ValueError, r"rate in \[0, 1\], got 1.5"),
        (lambda: Hat(rate=math.nan), ValueError, "got nan"),
        (lambda: Hat(rate="cosine"), TypeError, "rate as a float"),
        (lambda: Hat(every=0), ValueError, "every >= 1"),
        (lambda: Spectral(every=True), TypeError, "every as an int"),
        (lambda: Mean(-0.1), ValueError, "got -0.1"),
        (lambda: Neighbours(0.1, width=0.0), ValueError, "width > 0"),
        (lambda: Neighbours(0.1, width=0.1, nearest=0), ValueError, "nearest >= 1"),
        (lambda: Neighbours(0.1, width=0.1, nearest=5).bind(line_preferences(5)), ValueError, "nearest <= 4"),
        (lambda: CrossLearning(-1.0), ValueError, "eps finite and >= 0"),
        (lambda: CrossLearning(1.0, iterations=0), ValueError, "iterations >= 1"),
        (lambda: GumbelPrior(1.1), ValueError, r"rate in \[0, 1\], got 1.1"),
        (lambda: GumbelPrior(temperature=0.0), ValueError, "temperature > 0"),
        (lambda: GumbelPrior(temperature=2.0), ValueError, r"temperature in \[0, 1\], got 2.0"),
        (lambda: GumbelPrior(logits_lr=-1.0), ValueError, "logits_lr finite and >= 0"),
        (lambda: GumbelPrior(generator=3), TypeError, r"generator as a torch\.Generator"),
        (lambda: MGD(rate=math.inf), ValueError, "rate in"),
        (lambda: MGD(rate=3.0), ValueError, "rate in"),
        (lambda: LinearDecay(0.5, steps=0), ValueError, "steps >= 1"),
        (lambda: CosineDecay(2.0, steps=10), ValueError, "start in"),
        (lambda: ExponentialDecay(0.5, half_life=0.0), ValueError, "half_life > 0"),
        (lambda: WithLearningRate(1.1), ValueError, "value in"),
    ],
)
def test_bad_settings_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


# The user's own matrices


@pytest.mark.parametrize(
    "matrix",
    [
        torch.eye(3),
        torch.full((2, 3, 3), 1 / 3),
        torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]),
        torch.tensor([[5.0, 2.0, -1.0], [2.0, 2.0, 2.0], [-1.0, 2.0, 5.0]]) / 6,  # the hat matrix of three points
        torch.stack([torch.tensor([[5.0, 2.0, -1.0], [2.0, 2.0, 2.0], [-1.0, 2.0, 5.0]]) / 6, torch.eye(3)[[1, 2, 0]]]),
    ],
    ids=["identity", "mean per segment", "rotation", "signed symmetric", "one of each"],
)
def test_check_mix_accepts(matrix):
    check_mix(matrix, 3, 2)


@pytest.mark.parametrize(
    ("matrix", "error", "message"),
    [
        (np.eye(3), TypeError, "got ndarray"),
        (torch.eye(3, dtype=torch.int64), TypeError, "got torch.int64"),
        (torch.eye(4), ValueError, r"\[3, 3\] or \[2, 3, 3\], got \[4, 4\]"),
        (torch.eye(3).expand(4, 3, 3), ValueError, r"got \[4, 3, 3\]"),
        (torch.full((3, 3), math.nan), ValueError, "finite"),
        (torch.eye(3) * 1.25, ValueError, "sum to 1, got 1.25"),
        (torch.tensor([[1.5, -0.5, 0.0], [0, 1, 0], [0, 0, 1]]), ValueError, "neither .smallest entry -0.5"),
        (torch.tensor([[1.5, -0.5, 0.0], [-0.5, 1.5, 0], [0, 0, 1]]), ValueError, r"spectrum in \[-1, 1\].*1, 2\]"),
    ],
)
def test_check_mix_refuses(matrix, error, message):
    with pytest.raises(error, match=message):
        check_mix(matrix, 3, 2)


def test_a_user_function_is_checked_and_gets_the_context():
    preferences = line_preferences(4)
    seen = []

    def mean(given: TransferContext) -> Tensor:
        seen.append(given)
        return torch.full((4, 4), 1 / 4 + 1e-7)

    rule = UserTransfer(mean, every=5)
    rule.bind(preferences)
    given = context(preferences, centred_gram(normal(4, 3)))
    matrix = rule.matrix(given)
    assert seen == [given]
    assert matrix.dtype == torch.float64
    assert_close(matrix.sum(1), torch.ones(4, dtype=torch.float64), atol=1e-15)
    assert rule.every == 5 and rule.needs_gram
    assert UserTransfer(lambda given: None).matrix(given) is None
    with pytest.raises(ValueError, match=r"\[1, 4, 4\], got \[2, 4, 4\]"):
        UserTransfer(lambda given: torch.eye(4).expand(2, 4, 4)).matrix(given)


def test_as_transfer_rule():
    hat = Hat()
    assert as_transfer_rule(hat) is hat
    assert isinstance(as_transfer_rule(None), Identity)
    assert isinstance(as_transfer_rule(False), Identity)
    assert isinstance(as_transfer_rule(lambda given: None), UserTransfer)
    assert isinstance(as_transfer_rule("spectral"), Spectral)
    assert isinstance(as_transfer_rule("Distance_Decrease"), DistanceDecrease)
    for wrong in (True, 0.5):
        with pytest.raises(TypeError, match="expected a transfer rule"):
            as_transfer_rule(wrong)
    with pytest.raises(ValueError, match=r"got 'spectrel': did you mean 'spectral'\? All names are cross-learning"):
        as_transfer_rule("spectrel")
    with pytest.raises(ValueError, match=r"pass an instance, Neighbours\(rate=..., width=...\)"):
        as_transfer_rule("neighbours")
    with pytest.raises(TypeError, match="got the class Spectral: pass an instance"):
        as_transfer_rule(Spectral)


def test_schedules_are_schedules():
    for schedule in (
        Constant(1.0),
        LinearDecay(1.0, 5),
        CosineDecay(1.0, 5),
        ExponentialDecay(1.0, 5.0),
        WithLearningRate(1.0),
    ):
        assert isinstance(schedule, Schedule)
        assert Hat(rate=schedule).rate is schedule
