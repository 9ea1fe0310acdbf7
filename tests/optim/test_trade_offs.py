"""Weightings with which subproblems of different preferences would all be the same are refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mt2o_ext import MT2OFused
from mt2o_ext.optim import mt2o_options
from mt2o_ext.weighting import IMTLG, Every, NashMTL, Needs, Weighting
from mt2o_ext.weighting.registry import register

TARGETS = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
NAMES = sorted(name for name in register if name != "modo")  # which wants two mini-batches at once
ON_VERTICES = [name for name in NAMES if Needs.FEEDBACK not in register.make(name).needs]  # which vertices refuse
RANDOM = {"graddrop", "rlw", "rgw"}  # each subproblem draws its own numbers


def optimizer_of(p: nn.Parameter, weighting: Weighting | str, **options: object) -> MT2OFused:
    base = "adamw" if weighting == "m-config" else "sgd"
    given = {"front": "rows", "transfer": None, "preferences": [[0.9, 0.1], [0.5, 0.5], [0.1, 0.9]], **options}
    return MT2OFused([p], num_tasks=2, num_subproblems=3, weighting=weighting, base=base, lr=1e-3, **given)


def alike(name: str, **options: object) -> bool:
    """Whether the first steps of subproblems with opposite preferences have one direction."""
    p = nn.Parameter(torch.zeros(6, dtype=torch.float64))
    optimizer = optimizer_of(p, name, generator=torch.Generator().manual_seed(1), **options)
    for _ in optimizer.subproblems():
        optimizer.backward([(p - TARGETS[0]).square().sum() + 1, 3 * (p - TARGETS[1]).square().sum() + 1])
    optimizer.step()
    moved = []
    for k in (0, 2):
        with optimizer.subproblem(k):
            moved.append(p.detach().clone())
    return float(torch.nn.functional.cosine_similarity(*moved, dim=0)) > 1 - 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_each_weighting_says_what_it_does(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weighting = register.make(name)
    monkeypatch.setattr(mt2o_options, "check_trade_offs", lambda weighting, objective: None)
    if Needs.POINTS not in weighting.needs:
        assert alike(name) == weighting.undoes_factors
    assert weighting.reads_preferences is not None
    if name not in RANDOM:
        assert alike(name, scalarization=None) == (not weighting.reads_preferences)


@pytest.mark.parametrize(
    ("name", "front"), [*((name, "rows") for name in NAMES), *((n, "vertices") for n in ON_VERTICES)]
)
def test_what_would_be_alike_is_refused(name: str, front: str) -> None:
    weighting = register.make(name)
    p = nn.Parameter(torch.zeros(6, dtype=torch.float64))
    options = {} if front == "rows" else {"front": front, "transfer": "auto", "preferences": None}
    for refused, more in ((weighting.undoes_factors, {}), (not weighting.reads_preferences, {"scalarization": None})):
        if Needs.POINTS in weighting.needs and not more:
            continue  # refused for another reason
        if refused:
            with pytest.raises(ValueError, match=r"all subproblems would be the same.* another weighting, UPGrad"):
                optimizer_of(p, register.make(name), **options, **more)
        else:
            optimizer_of(p, register.make(name), **options, **more)


def test_the_remedy_is_one() -> None:
    p = nn.Parameter(torch.zeros(6, dtype=torch.float64))
    with pytest.raises(ValueError, match="pass scalarization=None, with which it goes by the preferences"):
        optimizer_of(p, Every(NashMTL(), 2))
    assert not alike("nash-mtl", scalarization=None)
    with pytest.raises(ValueError, match="the same") as raised:
        optimizer_of(p, IMTLG())
    assert "scalarization=None" not in str(raised.value)


def test_one_subproblem_or_task_has_no_trade_off() -> None:
    p = nn.Parameter(torch.zeros(6, dtype=torch.float64))
    MT2OFused([p], num_tasks=2, num_subproblems=1, weighting="imtl-g")


def test_weightings_of_users_are_let_pass() -> None:
    class Own(Weighting):
        needs = Needs.GRAM

        def _weights(self, context):
            return context.preferences

    p = nn.Parameter(torch.zeros(6, dtype=torch.float64))
    optimizer_of(p, Own(), scalarization=None)
