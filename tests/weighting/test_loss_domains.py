"""Losses that a method is not defined for: a constant added to a loss never makes a method ascend."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mt2o_ext import MT2OFused, WeightedBackward, WeightedFused
from mt2o_ext import weighting as W
from mt2o_ext.base import SGD
from mt2o_ext.weighting import LossDomain, Needs
from support.weighting.problems import METHODS, VARIANTS, every_weighting, steps

LATER_ANY = LossDomain.POSITIVE_AT_FIRST
LATER_ZERO = LossDomain.POSITIVE_AT_FIRST_THEN_NON_NEGATIVE
# Of their papers' formulas; all others take any losses.
DOMAINS = {
    "gls": LossDomain.POSITIVE,
    "stch": LossDomain.POSITIVE,
    "famo": LossDomain.ABOVE_LOWER_BOUND,
    "ldc-mtl": LATER_ANY,
    "gradnorm": LATER_ZERO,
    "gradnorm first epoch": LossDomain.NON_NEGATIVE,
    "mgda loss": LossDomain.POSITIVE,
    "mgda loss+": LossDomain.POSITIVE,
    "mgda loss+ raw": LossDomain.POSITIVE,
    "cdtt": LossDomain.POSITIVE,
    "cdtt unit": LossDomain.POSITIVE,
    "moco": LossDomain.NON_NEGATIVE,
    "moco softmax": LossDomain.NON_NEGATIVE,
    "moco raw": LossDomain.NON_NEGATIVE,
    "ema moco": LossDomain.NON_NEGATIVE,
    "db-mtl": LossDomain.POSITIVE,
    "epo": LossDomain.NON_NEGATIVE,
    "log": LossDomain.POSITIVE,
    "relative": LATER_ANY,
}
PARTIAL = [name for name, domain in DOMAINS.items() if name in METHODS]
USABLE = [name for name in METHODS if Needs.CROSS not in METHODS[name]().needs]


def takes(domain: LossDomain, loss: float, *, first: bool) -> bool:
    """The words of the domain, once more."""
    if domain is LossDomain.ANY or (domain is LATER_ANY and not first):
        return True
    at_least_zero = domain is LossDomain.NON_NEGATIVE or (domain is LATER_ZERO and not first)
    return loss >= 0 if at_least_zero else loss > 0


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("loss", [-3.0, -1e-30, 0.0, 1e-30, 3.0])
@pytest.mark.parametrize("at", [0, 2])
def test_each_method_takes_the_losses_that_its_formula_is_defined_for_and_no_others(name: str, loss: float, at: int):
    weighting, plain = VARIANTS[name](), steps()
    given = replace(plain, losses=[each.clone() for each in plain.losses])
    given.losses[at][1, 2] = loss
    plain.run(weighting, end=at)
    weighting.bind(*plain.shape, "cpu") if at == 0 else None
    before = {key: tensor.clone() for key, tensor in weighting.state_dict().items()}
    direction, refusals = given.step(weighting, at), weighting.refusals()
    assert direction[0].isfinite().all() and refusals[0].tolist() == [0, 0, 0]
    if takes(DOMAINS.get(name, LossDomain.ANY), loss, first=at == 0):
        assert direction[1].isfinite().all()
        assert refusals[1].tolist() == [0, 0, 0]
        return
    assert direction[1].isnan().all()
    number, task, value = refusals[1].tolist()
    assert (task, value) == (2, loss)
    # The method itself is named, also inside of another one, and what it needs.
    said = weighting.reasons[int(number) - 1].of(None, int(task), value)
    method = type(getattr(weighting, "inner", weighting) if name.startswith("ema") else weighting).__name__
    assert said == f"{method} needs {DOMAINS[name].value}; task 2 had {loss:.3g}"
    # Neither its weights nor its running numbers have seen that step.
    for key, tensor in weighting.state_dict().items():
        if key in before:  # a memory begins with the first step
            assert torch.equal(tensor.chunk(2)[1], before[key].chunk(2)[1]), key
        else:
            assert not tensor.chunk(2)[1].any(), key


# ---------------------------------------------------------------------- the law, in training
class Quadratics(nn.Module):
    """Two losses that share no element: ((p - 1)^2).sum() / 2 of each half, the first one with a constant."""

    def __init__(self, constant: float) -> None:
        super().__init__()
        self.constant = constant
        self.p = nn.Parameter(torch.zeros(4, dtype=torch.float64))

    def losses(self) -> list[Tensor]:
        first, second = ((self.p[half] - 1).square().sum() / 2 for half in (slice(2), slice(2, 4)))
        return [first + self.constant, second + 1]

    def now(self) -> tuple[Tensor, Tensor, Tensor]:
        """The parameters, the losses and the gradients of these."""
        losses = self.losses()
        rows = torch.stack([torch.autograd.grad(loss, self.p)[0] for loss in losses])
        return self.p.detach().clone(), torch.stack(losses).detach(), rows


def by_weighted_fused(model: Quadratics, name: str, **options: Any) -> Callable[[], Any]:
    optimizer = WeightedFused(
        model.parameters(), num_tasks=2, weighting=METHODS[name](), base=SGD(), lr=0.2, generator=generator(), **options
    )
    return lambda: optimizer.step(model.losses)


def by_accumulation(model: Quadratics, name: str) -> Callable[[], Any]:
    return by_weighted_fused(model, name, accumulate=True)


def by_backward(model: Quadratics, name: str) -> Callable[[], Any]:
    backward = WeightedBackward(model.parameters(), num_tasks=2, weighting=METHODS[name](), generator=generator())

    def step() -> None:
        model.zero_grad()
        before = model.losses()
        weights = backward(before)
        if weights.isnan().any():
            assert all(p.grad.isnan().all() for p in model.parameters())  # type: ignore[union-attr]
            return
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.2 * p.grad  # type: ignore[operator]

    return step


def by_mt2o(model: Quadratics, name: str) -> Callable[[], Any]:
    weighting = METHODS[name]()
    own = Needs.POINTS in weighting.needs or (weighting.undoes_factors and weighting.reads_preferences)
    given: dict[str, Any] = {"scalarization": None} if own else {}
    second = [0.5, 0.5] if weighting.undoes_factors and not own else [0.3, 0.7]  # others would be refused
    optimizer = MT2OFused(
        model.parameters(), num_tasks=2, num_subproblems=2, preferences=[[0.5, 0.5], second],
        weighting=weighting, transfer=None, base=SGD(), lr=0.2, generator=generator(), **given,
    )  # fmt: skip
    return lambda: optimizer.step(model.losses)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


WAYS = {"fused": by_weighted_fused, "accumulate": by_accumulation, "backward": by_backward, "mt2o": by_mt2o}


@pytest.mark.parametrize("constant", [-100.0, -0.5], ids=["below zero", "crosses zero"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", USABLE)
def test_a_constant_added_to_a_loss_never_makes_a_method_ascend(name: str, way: str, constant: float):
    """The losses do not conflict: no method has a reason to trade one for the other, and a step goes down on both."""
    model = Quadratics(constant)
    step, seen = WAYS[way](model, name), [model.now()]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(12):
            step()
            seen.append(model.now())
    for (p, _, rows), (q, _, _) in pairwise(seen):
        assert (rows @ (q - p) <= 1e-12).all()
    # That nobody calls feedback(), as FAMO wants it, is told as well.
    texts = [text for warning in caught if "feedback(losses)" not in (text := str(warning.message))]
    refused = [text for text in texts if text.startswith(f"{type(METHODS[name]()).__name__} needs ")]
    assert texts == refused  # nothing else to say
    if constant == -100 and name in DOMAINS:
        assert len(refused) == 2  # at the first and at the 10th step
        assert torch.equal(seen[-1][0], seen[0][0])
    else:
        assert (seen[-1][1] < seen[0][1] - 0.1).any()
        assert not refused or name in DOMAINS


def test_modo_takes_any_losses():
    """MoDo reads no losses and runs in no optimizer: its weights are on the simplex."""
    rows = torch.eye(2, dtype=torch.float64)
    weights = W.MoDo()(cross=rows, losses=torch.tensor([-100.0, 1.0], dtype=torch.float64))
    assert (weights >= 0).all() and float(weights.sum()) == pytest.approx(1)


# ---------------------------------------------------------------------- what they need, in particular
def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_gradnorm_learns_on_from_a_loss_of_zero():
    """A satisfied hinge is ahead of all others: its weight falls, theirs grow."""
    weighting, squares = W.GradNorm(lr=0.1), torch.eye(3, dtype=torch.float64)
    weighting(squares, losses=tensor(1.0, 2.0, 3.0))
    for _ in range(20):
        weights = weighting(squares, losses=tensor(0.0, 2.0, 3.0))
    assert weights[0] < 0.9 < 1.0 < weights[1]
    assert float(weights.sum()) == pytest.approx(3)


def test_gradnorm_where_all_losses_are_zero_learns_from_equal_rates():
    squares = torch.diag(tensor(1.0, 4.0))
    one, other = W.GradNorm(lr=0.1), W.GradNorm(lr=0.1)
    for weighting in (one, other):
        weighting(squares, losses=tensor(1.0, 1.0))
    one(squares, losses=tensor(0.0, 0.0))
    other(squares, losses=tensor(0.5, 0.5))
    assert torch.equal(one(squares, losses=tensor(1.0, 1.0)), other(squares, losses=tensor(1.0, 1.0)))


def test_gradnorm_takes_the_first_epoch_without_a_mean_of_zero():
    weighting, squares = W.GradNorm(lr=0.1, first_epoch=True), torch.diag(tensor(1.0, 4.0))
    for step, first in enumerate([0.0, 0.0, 2.0, 0.0, 1.0]):
        weights = weighting(squares, losses=tensor(first, 3.0), epoch=step // 2)
        assert torch.equal(weights, tensor(1.0, 1.0))
    assert weighting.state_dict()["first_losses"].tolist() == [[1.0, 3.0]]
    assert not torch.equal(weighting(squares, losses=tensor(1.0, 3.0), epoch=2), tensor(1.0, 1.0))


def test_famo_speaks_of_its_bound():
    weighting = W.FAMO(lower_bound=[-2.0, 0.5])
    assert weighting(losses=tensor(-1.0, 1.0)).isfinite().all()
    assert weighting(losses=tensor(-1.0, 0.25)).isnan().all()
    assert weighting.refusals().tolist() == [[1, 1, 0.25]]
    assert weighting.reasons[0].of(None, 1, 0.25) == "FAMO needs losses above its lower_bound; task 1 had 0.25"
    assert "lower_bound" in weighting.reasons[0].remedy


def test_epo_on_the_ray_where_all_losses_are_zero_and_without_regard_to_tasks_that_nobody_prefers():
    gram = torch.diag(tensor(1.0, 4.0))
    descent = W.EPO()(gram, losses=tensor(1.0, 1.0))
    assert torch.equal(W.EPO()(gram, losses=tensor(0.0, 0.0)), descent)
    only_first = W.EPO()(gram, losses=tensor(1.0, -1.0), preferences=tensor(1.0, 0.0))
    assert only_first.isfinite().all()


@pytest.mark.parametrize("make", [W.UncertaintyWeighting, W.IMTLL])
def test_a_learned_weight_of_a_negative_loss_grows_until_it_is_refused_by_name(make: Callable[..., W.Weighting]):
    assert "without bound" in " ".join((make.__doc__ or "").split())
    weighting, row = make(lr=1.0), tensor(-2.0, 1.0)
    seen = [weighting(losses=row) for _ in range(300)]
    finite = [weights for weights in seen if weights.isfinite().all()]
    grown = torch.stack(finite)[:, 0]
    assert (grown.diff() > 0).all() and float(grown[-1]) > 1e150  # whose square is not far from the largest float64
    assert len(finite) < 290 and all(weights.isnan().all() for weights in seen[len(finite) :])
    state = weighting.state_dict()
    weighting(losses=row)
    assert all(torch.equal(value, state[key]) for key, value in weighting.state_dict().items())
    number, task, value = weighting.refusals()[0].tolist()
    assert (task, value) == (0, math.inf)
    said = weighting.reasons[int(number) - 1].of(None, 0, value)
    assert said == f"the weight that {make.__name__} gives task 0 is out of range: inf"


# ---------------------------------------------------------------------- around a weighting
LOSSES = tensor(-0.5, 2.0)
AROUND: dict[str, tuple[Callable[[], W.Weighting], str, float]] = {
    "Ema": (lambda: W.Ema(W.GLS()), "GLS needs positive losses; task 0 had", -0.5),
    "Rescale": (lambda: W.Rescale(W.GLS(), "simplex"), "GLS needs positive losses; task 0 had", -0.5),
    "Every": (lambda: W.Every(W.GLS(), 2), "GLS needs positive losses; task 0 had", -0.5),
    "LogLosses": (lambda: W.LogLosses(W.UPGrad()), "LogLosses needs positive losses; task 0 had", -0.5),
    "Relative": (lambda: W.Relative(W.GLS()), "Relative needs positive losses at first; task 0 had", -0.5),
    "of a given unit": (lambda: W.Relative(W.GLS(), 2.0), "GLS needs positive losses; task 0 had", -0.25),
    "of logarithms": (
        lambda: W.Relative(W.LogLosses(W.GLS()), 8.0),
        "LogLosses needs positive losses; task 0",
        -0.0625,
    ),
    "PerSegment": (lambda: W.PerSegment(W.GradNorm()), "GradNorm needs positive losses at first", -0.5),
    "Fallback": (lambda: W.Fallback(W.GLS(), W.MGDA(normaliser="loss")), "MGDA needs positive losses; task 0", -0.5),
    "twice": (lambda: W.Ema(W.Rescale(W.EPO(), "T")), "EPO needs losses that are not negative; task 0 had", -0.5),
}


@pytest.mark.parametrize("name", AROUND)
def test_around_a_weighting_the_one_that_refuses_is_named(name: str):
    make, expected, value = AROUND[name]
    weighting = make()
    segments = torch.eye(2, dtype=torch.float64).expand(3, 2, 2)
    assert weighting(segments=segments, losses=LOSSES).isnan().all()
    [[number, task, found]] = weighting.refusals().tolist()
    assert found == value
    assert weighting.reasons[int(number) - 1].of(None, int(task), found).startswith(expected)
    assert not weighting.state_dict().get("average", torch.zeros(1)).any()
    good = weighting(segments=segments, losses=tensor(0.5, 2.0))
    assert good.isfinite().all() == (name != "of logarithms")  # log(1 / 16) is no loss for GLS
    assert weighting.refusals()[0, 0] == (0 if name != "of logarithms" else 4 + 1)


def test_a_second_weighting_steps_in_where_the_first_refuses():
    weighting = W.Fallback(W.GLS(), W.LinearWeighting())
    assert torch.equal(weighting(losses=LOSSES), tensor(0.5, 0.5))
    assert weighting.refusals().tolist() == [[0, 0, 0]]
    # And the first does where the second would refuse.
    assert W.Fallback(W.LinearWeighting(), W.GLS())(losses=LOSSES).isfinite().all()


def test_old_weights_do_for_losses_that_new_ones_could_not_be_made_of():
    weighting = W.Every(W.GLS(), 2)
    kept = weighting(losses=tensor(0.5, 2.0))
    assert torch.equal(weighting(losses=LOSSES), kept)
    assert weighting(losses=LOSSES).isnan().all()


@pytest.mark.parametrize(
    ("make", "losses", "weights"),
    [
        (lambda: W.LinearWeighting([1.0, 3.0]), [1.0, 1.0], [1.0, 3.0]),
        (lambda: W.LogLosses(W.LinearWeighting([1.0, 3.0])), [100.0, 1000.0], [0.01, 0.003]),
        (lambda: W.LogLosses(W.LinearWeighting([1.0, 3.0])), [0.1, 0.01], [10.0, 300.0]),
        (lambda: W.Relative(W.LinearWeighting([1.0, 3.0]), 10.0), [1.0, 1.0], [0.1, 0.3]),
        (lambda: W.PerSegment(W.LinearWeighting([1.0, 3.0])), [1.0, 1.0], [1.0, 3.0]),
        (lambda: W.Rescale(W.LinearWeighting([1.0, 3.0]), "T"), [1.0, 1.0], [2.0, 6.0]),
    ],
)
def test_the_largest_weights_are_limits_of_what_comes_out(
    make: Callable[[], W.Weighting], losses: list[float], weights: list[float]
):
    weighting = make()
    weighting.bind(3, 2, 5, "cpu")
    largest = torch.stack([tensor(*weights), tensor(*weights) * 1.01, tensor(1.01, 0.99) * tensor(*weights)])
    segments = torch.eye(2, dtype=torch.float64).expand(3, 5, 2, 2)
    given = {"preferences": torch.full((3, 2), 0.5, dtype=torch.float64), "losses": tensor(*losses).expand(3, 2)}
    largest[0] *= 1 + 1e-12  # rounding
    found = weighting.weights(W.WeightingContext(**given, segments=segments, gram=segments.sum(1), largest=largest))
    assert found.isfinite().flatten(1).all(1).tolist() == [True, True, False]
    assert found[2].isnan().all()
    refusals = weighting.refusals()
    assert refusals is not None and refusals[:2].eq(0).all()
    number, task, value = refusals[2].tolist()
    assert task == 1 and value in (pytest.approx(weights[1]), 3.0)  # of an inner weighting its own
    said = weighting.reasons[int(number) - 1].of(None, 1, value)
    assert re.match(rf"the weight that \w+ gives task 1 is out of range: {value:.3g}$", said)


@every_weighting()
def test_the_domain_is_declared_and_in_words(make):
    weighting = make()
    domains = [weighting.loss_domain, *(part.loss_domain for part in weighting._parts().values())]
    expected = DOMAINS.get(next(name for name, other in VARIANTS.items() if other is make), LossDomain.ANY)
    assert expected in domains
    assert all(domain in (expected, LossDomain.ANY) for domain in domains)
