"""One transfer rule after another."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from mt2o_ext import MT2OFused
from mt2o_ext.preferences import even
from mt2o_ext.transfer import DistanceDecrease, Mean, Sequence, Spectral, TransferContext
from support.optim.problems import Batches, assert_same, make_model, rows, snapshot, train


def context(step: int, num_subproblems: int = 5) -> TransferContext:
    theta = torch.randn(num_subproblems, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
    theta = theta - theta.mean(0)
    lr = torch.tensor(0.1, dtype=torch.float64)
    return TransferContext(even(num_subproblems), (theta @ theta.T)[None], None, step, lr, 0.1)


def test_each_rule_has_its_steps() -> None:
    rule = Sequence([(Mean(0.5), 3), (Mean(0.1), 2), (Spectral(every=2), None)])
    parts = [Mean(0.5), Mean(0.1), Spectral(every=2)]
    for one in (rule, *parts):
        one.bind(even(5))
    assert rule.needs_gram
    for step in range(12):
        own = parts[0] if step < 3 else parts[1] if step < 5 else parts[2]
        assert rule.due(step) == own.due(step)
        if own.due(step):
            assert_same(rule.matrix(context(step)), own.matrix(context(step)))


def test_one_model_at_first_is_what_warm_up_does() -> None:
    one, other = make_model(), make_model()
    options: dict[str, Any] = {"num_tasks": 2, "num_subproblems": 5, "lr": 1e-2}
    sequence = Sequence([(Mean(1.0), 4), (Spectral(every=2), None)])
    by_rule = MT2OFused(one.parameters(), transfer=sequence, **options)
    by_option = MT2OFused(other.parameters(), transfer=Spectral(every=2), warm_up=4, **options)
    train(by_rule, one, Batches(), 9)
    train(by_option, other, Batches(), 9)
    torch.testing.assert_close(rows(by_rule, one), rows(by_option, other), rtol=1e-5, atol=1e-6)


def test_the_state_is_that_of_all_rules() -> None:
    def make(seed: int) -> tuple[torch.nn.Module, MT2OFused]:
        model = make_model(seed=seed)
        rule = Sequence([(DistanceDecrease(), 3), (DistanceDecrease(), None)])
        return model, MT2OFused(model.parameters(), num_tasks=2, num_subproblems=5, lr=1e-2, transfer=rule)

    model, optimizer = make(0)
    train(optimizer, model, Batches(), 4)
    resumed_model, resumed = make(1)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(optimizer, model, Batches(1), 3)
    train(resumed, resumed_model, Batches(1), 3)
    assert_same(snapshot(resumed), snapshot(optimizer))


@pytest.mark.parametrize(
    ("stages", "text"),
    [
        ([], "at least one stage"),
        ([(Mean(0.1), 3)], "None as the number of steps of the last"),
        ([(Mean(0.1), None), (Spectral(), None)], "and of no other"),
        ([(Mean(0.1), 0), (Spectral(), None)], "steps"),
        ([(Spectral(relative=True), 3), (Spectral(), None)], "relative"),
    ],
    ids=["nothing", "an end", "no end", "no steps", "changes"],
)
def test_stages_that_cannot_be(stages: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Sequence(stages)
