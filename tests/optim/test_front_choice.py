"""Rows or vertices: what is trained where nobody says it, what does not go together, and where one can see which."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from mt2o_ext import MT2OFused, SubproblemBank
from mt2o_ext.optim import asked
from mt2o_ext.scalarization import FewForMany, SmoothTchebycheff
from mt2o_ext.transfer import Mean, Moments
from mt2o_ext.weighting import DWA, FAMO, CAGrad, Ema, ExcessMTL, PaMaL, register
from support.optim.problems import Batches, assert_same, make_model, parameters, rows, seeded, snapshot, train

EQUAL = [[0.5, 0.5]] * 5


def make(params: Any = None, **options: Any) -> MT2OFused:
    return MT2OFused(parameters(4) if params is None else params, **{"num_tasks": 2, **options})


def kind_of(optimizer: MT2OFused) -> str:
    """As everybody can see it; in the state dict, unless it is that of one model."""
    shared = optimizer.state_dict()["param_groups"][0].get("mt2o")
    [kind] = [kind for kind in ("rows", "vertices") if f"front='{kind}'" in repr(optimizer)]
    assert shared is None or shared["front"] == kind
    key = "vertices" if kind == "vertices" else "subproblems"
    assert all(key in state for state in optimizer.state.values())
    return kind


CHOSEN: dict[str, dict[str, Callable[[], dict[str, Any]]]] = {
    "vertices": {
        "nothing": dict,
        "points": lambda: {"points": 1},
        "concentration": lambda: {"concentration": 2.0},
        "points at preferences": lambda: {"points": 3, "preferences": EQUAL},
        "points of one subproblem": lambda: {"points": 3, "num_subproblems": 1},
        "points, initialised": lambda: {"points": 3, "start": lambda k: None},
        "generator": lambda: {"generator": torch.Generator()},
        "scalarization": lambda: {"scalarization": SmoothTchebycheff()},
        "weighting": lambda: {"weighting": CAGrad()},
        "weighting of points": lambda: {
            "scalarization": None, "weighting": PaMaL(balancing="losses", regularization=1.0)
        },
        "stacked": lambda: {"params": [nn.Parameter(torch.ones(5, 3))], "stacked": True},
        "options of both": lambda: {"ema": 0.9, "max_norm": 1.0, "warm_up": 3, "history": 2, "lr": 0.1, "base": "sgd"},
        "groups": lambda: {"params": [{"params": parameters(3), "lr": 0.1}, {"params": parameters(2)}]},
        "iterator": lambda: {"params": iter(parameters(3, 2))},
        "no process group": lambda: {"process_group": None},
        "three tasks": lambda: {"num_tasks": 3},
        "four tasks, points": lambda: {"num_tasks": 4, "points": 3},
        "four tasks, weighting of points": lambda: {"num_tasks": 4, "scalarization": None, "weighting": "pamal"},
    },
    "rows": {
        "no transfer": lambda: {"transfer": None},
        "transfer": lambda: {"transfer": Mean(0.1)},
        "transfer by name": lambda: {"transfer": "spectral"},
        "order": lambda: {"order": "adapt_then_combine"},
        "moments": lambda: {"transfer": Mean(0.1), "moments": Moments.MIX},
        "preferences": lambda: {"preferences": EQUAL, "num_subproblems": 5},
        "start": lambda: {"start": lambda k: None},
        "who averages over ranks": lambda: {"process_group": False},
        "one subproblem": lambda: {"num_subproblems": 1},
        "one task": lambda: {"num_tasks": 1, "num_subproblems": 1},
        "four tasks": lambda: {"num_tasks": 4},
        "all models at once": lambda: {"scalarization": FewForMany()},
        "feedback": lambda: {"weighting": "famo"},
        "memory": lambda: {"weighting": ExcessMTL()},
        "epochs": lambda: {"weighting": DWA()},
        "memory of a part": lambda: {"weighting": Ema("upgrad")},
        "a group without transfer": lambda: {"params": [{"params": parameters(3), "transfer": False}]},
        "such a group in an iterator": lambda: {"params": iter([{"params": parameters(3), "transfer": False}])},
    },
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Spectral transfers nothing")
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in CHOSEN.items() for name in names])
def test_the_other_options_choose(kind: str, name: str) -> None:
    options = CHOSEN[kind][name]()
    assert kind_of(make(options.pop("params", None), **options)) == kind


def test_a_weighting_that_remembers_asks_for_rows_and_is_left_as_it_is() -> None:
    """Those whose state is empty remember nothing, whatever the class."""
    remember = {name for name in register if asked._remembers(register.make(name), 2)}
    assert {"famo", "dwa", "moco", "db-mtl", "gradvac", "uw"} <= remember
    assert not remember & {"cagrad", "upgrad", "pcgrad", "mgda", "pamal", "ls", "rlw", "gls"}
    weighting, p = FAMO(), parameters(4)
    make(p, weighting=weighting).step(lambda: [p[0].square().sum(), (p[0] - 1).square().sum()])
    kept = weighting.state_dict()
    with pytest.raises(ValueError, match="points="):
        make(weighting=weighting, points=2, transfer=Mean(0.1))
    assert_same(weighting.state_dict(), kept)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"points": 2, "transfer": Mean(0.1)}, 'points= would have no effect with front="rows", and transfer= none'),
        ({"concentration": 2.0, "order": "adapt_then_combine"}, "concentration= would.* and order= none with"),
        ({"front": "vertices", "transfer": "spectral"}, 'transfer= would.*"vertices": leave it out, or take front="ro'),
        (
            {"front": "vertices", "order": "adapt_then_combine", "moments": Moments.MIX},
            "order=, moments= would have no",
        ),
        ({"front": "rows", "points": 2, "concentration": 2.0}, 'points=, concentration= .* or take front="vertices"'),
        ({"front": "vertices", "weighting": "famo"}, 'take front="rows"'),
        ({"points": 2, "weighting": "famo"}, 'take front="rows"'),
        ({"front": "vertices", "scalarization": FewForMany()}, 'take front="rows"'),
        ({"front": "corners"}, "front as one of 'rows', 'vertices'"),
        ({"front": "vertices", "num_tasks": 1, "num_subproblems": 1}, "at least 2 tasks"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "text",
)
def test_what_does_not_go_together_says_what_to_do(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make(**options)


def test_groups_without_transfer_are_named_in_either_way() -> None:
    groups = [{"params": parameters(3), "transfer": False}]
    with pytest.raises(ValueError, match=r'groups with transfer=False would have no effect.*front="rows"'):
        make(groups, front="vertices")
    with pytest.raises(ValueError, match=r"points= .* and groups with transfer=False none"):
        make(groups, points=2)
    optimizer = make()
    with pytest.raises(ValueError, match=r'leave it out, or take front="rows"'):
        optimizer.add_param_group(groups[0])


def test_models_of_a_bank_that_differ_are_refused_with_two_ways_out() -> None:
    with pytest.raises(ValueError, match=r'loaded after its optimizer is made.*or take front="rows"'):
        make([nn.Parameter(torch.arange(10.0).reshape(5, 2))], stacked=True)


def test_a_saved_bank_goes_on() -> None:
    bank, other = SubproblemBank(make_model(), 5), SubproblemBank(make_model(seed=1), 5)
    options = {"num_tasks": 2, "stacked": True, "ema": 0.9}
    first, second = MT2OFused(bank.parameters(), **options), MT2OFused(other.parameters(), **options)
    x = torch.randn(5, 8, 7)
    first.step(lambda: bank(x).square().mean(1))
    other.load_state_dict(bank.state_dict())
    second.load_state_dict(first.state_dict())
    for one, own in ((first, bank), (second, other)):
        one.step(lambda: own(x).square().mean(1))  # noqa: B023
    assert_same(second.state_dict(), first.state_dict())
    assert_same(dict(other.named_parameters()), dict(bank.named_parameters()))


# ---------------------------------------------------------------------- checkpoints
@pytest.mark.parametrize("saved", ["rows", "vertices"])
def test_a_checkpoint_of_the_other_kind_is_refused_by_name(saved: str) -> None:
    kinds = {saved: make_model(), "rows" if saved == "vertices" else "vertices": make_model()}
    made = {kind: MT2OFused(model.parameters(), **seeded(num_tasks=2, front=kind)) for kind, model in kinds.items()}
    for kind, optimizer in made.items():
        train(optimizer, kinds[kind], Batches(), 1)
    [other] = made.keys() - {saved}
    before = snapshot(made[other])
    with pytest.raises(
        ValueError, match=rf'front="{other}", as this.*front="{saved}".*MT2OFused\(\.\.\., front="{saved}"'
    ):
        made[other].load_state_dict(made[saved].state_dict())
    assert_same(snapshot(made[other]), before)


def test_a_dict_of_one_model_does_not_fit_a_front() -> None:
    one, front = make(num_subproblems=1), make(num_subproblems=1, front="vertices")
    for first, second in ((one, front), (front, one)):
        with pytest.raises(ValueError, match="expected the state of"):
            first.load_state_dict(second.state_dict())


# ---------------------------------------------------------------------- the default is the front on vertices
def test_nothing_said_is_vertices_said() -> None:
    models = [make_model(), make_model()]
    generators = [torch.Generator().manual_seed(3) for _ in models]
    options = {"num_tasks": 2, "lr": 1e-2, "ema": 0.9}
    made = [
        MT2OFused(model.parameters(), generator=generator, **options, **given)
        for model, generator, given in zip(models, generators, ({}, {"front": "vertices"}), strict=True)
    ]
    for model, optimizer in zip(models, made, strict=True):
        train(optimizer, model, Batches(), 5)
    assert_same(snapshot(made[0]), snapshot(made[1]))
    assert_same(rows(made[0], models[0]), rows(made[1], models[1]))
    resumed = copy.deepcopy(made[0])
    resumed.load_state_dict(made[1].state_dict())


@pytest.mark.parametrize("how", ["front", "subproblem", "at"])
def test_statistics_of_random_points_are_told_of_once(how: str) -> None:
    def look() -> None:
        if how == "front":
            optimizer.front(lambda: model(x).square().mean(0))
        elif how == "subproblem":
            with optimizer.subproblem(1):
                model(x)
        else:
            with optimizer.at([0.3, 0.7]):
                model(x)

    model = make_model(norm=True)
    optimizer = MT2OFused(model.parameters(), num_tasks=2, buffers=model.buffers())
    x, _ = next(Batches(3))
    model.eval()
    look()  # nothing was trained
    model.train()
    train(optimizer, model, Batches(), 2)
    model.eval()
    with pytest.warns(UserWarning, match=r"call optimizer\.update_buffers"):
        look()
    look()  # a second warning would be an error


def test_statistics_that_were_computed_are_told_of_no_more() -> None:
    model = make_model(norm=True)
    optimizer = MT2OFused(model.parameters(), num_tasks=2, buffers=model.buffers())
    train(optimizer, model, Batches(), 2)
    loader = [next(Batches(seed)) for seed in range(2)]
    optimizer.update_buffers(lambda: update_bn(loader, model))
    model.eval()
    optimizer.front(lambda: model(loader[0][0]).square().mean(0))
    with optimizer.at([0.3, 0.7]):
        update_bn(loader, model)
        model(loader[0][0])


@pytest.mark.parametrize("points", [1, 5])
def test_running_statistics_without_buffers_are_told_of(points: int) -> None:
    model = make_model(norm=True)
    optimizer = MT2OFused(model.parameters(), num_tasks=2, points=points)
    with pytest.warns(UserWarning, match=r"random points of the steps.*optimizer\.update_buffers"):
        train(optimizer, model, Batches(), 1)
