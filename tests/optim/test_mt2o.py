"""MT2O itself: the step is M Theta - a U, what subproblems share and do not share, warnings, start, the front."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mt2o_ext import MT2OFused
from mt2o_ext.base import SGD
from mt2o_ext.preferences import even, riesz_energy
from mt2o_ext.scalarization import FewForMany
from mt2o_ext.transfer import Hat, Mean, Moments, Neighbours, Spectral, TransferContext, as_transfer_rule
from support.optim.problems import Batches, assert_same, make_model, rows, snapshot, task_losses, train

K = 5


def make(model: nn.Module, **options: Any) -> MT2OFused:
    given = {"num_tasks": 2, "num_subproblems": K, "lr": 1e-2, "front": "rows"}
    return MT2OFused(model.parameters(), **{**given, **options})


class Quadratics(nn.Module):
    """T losses 1/2 (x - c_t)^T A_t (x - c_t) of n parameters, in two tensors."""

    def __init__(self, num_tasks: int = 2, size: int = 12) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        factors = torch.randn(num_tasks, size, size, generator=generator, dtype=torch.float64)
        self.curvature = factors @ factors.mT / size + 0.1 * torch.eye(size, dtype=torch.float64)
        self.centre = torch.randn(num_tasks, size, generator=generator, dtype=torch.float64)
        self.first = nn.Parameter(torch.zeros(5, dtype=torch.float64))
        self.second = nn.Parameter(torch.zeros(size - 5, dtype=torch.float64))

    def forward(self) -> Tensor:
        offset = torch.cat([self.first, self.second]) - self.centre
        return 0.5 * torch.einsum("ti,tij,tj->t", offset, self.curvature, offset)

    def spread(self, k: int) -> None:
        generator = torch.Generator().manual_seed(k)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))

    def theta(self, optimizer: MT2OFused) -> Tensor:
        return torch.stack([torch.cat(row) for row in rows(optimizer, self)])


def stochastic(preferences: Tensor) -> Tensor:
    """Some M with positive entries and rows that sum to one, not symmetric."""
    generator = torch.Generator().manual_seed(9)
    noise = torch.rand(len(preferences), len(preferences), generator=generator, dtype=torch.float64)
    return 0.7 * torch.eye(len(preferences), dtype=torch.float64) + 0.3 * noise / noise.sum(1, keepdim=True)


RULES: dict[str, Any] = {
    "user": lambda: lambda context: stochastic(context.preferences),
    "hat": lambda: Hat(rate=0.5, every=2),
    "spectral": lambda: Spectral(every=3),
    "neighbours": lambda: Neighbours(0.2, 0.3),
}


def blended(mix: Tensor, theta: Tensor) -> Tensor:
    """M Theta, with M [K, K] or one for each of the two tensors."""
    first, second = mix.expand(2, K, K)
    return torch.cat([first @ theta[:, :5], second @ theta[:, 5:]], 1)


# ---------------------------------------------------------------------- the equation
@pytest.mark.parametrize("order", ["consensus", "adapt_then_combine"])
@pytest.mark.parametrize("rule", RULES)
def test_the_step_is_the_equation(order: str, rule: str) -> None:
    problem, lr = Quadratics(), 0.1
    transfer: Any = RULES[rule]()
    optimizer = make(problem, base=SGD(), lr=lr, order=order, transfer=transfer, start=problem.spread)
    weights, theta = optimizer.preferences, problem.theta(optimizer)
    oracle = as_transfer_rule(RULES[rule]())
    oracle.bind(weights)
    for step in range(12):
        gradients = torch.einsum("kt,tij,ktj->ki", weights, problem.curvature, theta[:, None] - problem.centre)
        optimizer.step(problem)
        centred = theta - theta.mean(0)
        gram = torch.stack([part @ part.T for part in (centred[:, :5], centred[:, 5:])])
        context = TransferContext(weights, gram, None, step, torch.tensor(lr, dtype=torch.float64), lr)
        mix = oracle.matrix(context) if oracle.due(step) else torch.eye(K, dtype=torch.float64)
        assert mix is not None
        theta = blended(mix, theta) - lr * gradients if order == "consensus" else blended(mix, theta - lr * gradients)
        torch.testing.assert_close(problem.theta(optimizer), theta, rtol=1e-10, atol=1e-11)


def test_relative_transfer_filters_changes_only() -> None:
    problem, lr = Quadratics(), 0.1
    optimizer = make(problem, base=SGD(), lr=lr, transfer=Spectral(every=2, relative=True), start=problem.spread)
    oracle, weights, theta = Spectral(every=2), optimizer.preferences, problem.theta(optimizer)
    oracle.bind(weights)
    base = theta.clone()
    for step in range(8):
        gradients = torch.einsum("kt,tij,ktj->ki", weights, problem.curvature, theta[:, None] - problem.centre)
        optimizer.step(problem)
        if oracle.due(step):
            change = theta - base
            centred = change - change.mean(0)
            gram = torch.stack([part @ part.T for part in (centred[:, :5], centred[:, 5:])])
            mix = oracle.matrix(TransferContext(weights, gram, None, step, torch.tensor(lr), lr))
            assert mix is not None
            base = base + blended(mix, change)
            theta = base.clone()
        theta = theta - lr * gradients
        torch.testing.assert_close(problem.theta(optimizer), theta, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    "transfer", [Hat(every=1), Spectral(every=1), Mean(0.3), Neighbours(0.3, 0.2)], ids=lambda rule: type(rule).__name__
)
def test_permuted_subproblems_give_permuted_results(transfer: Any) -> None:
    order = torch.tensor([3, 0, 4, 1, 2])
    results = []
    for permutation in (torch.arange(K), order):
        problem = Quadratics()
        optimizer = make(
            problem,
            lr=0.05,
            transfer=transfer,
            preferences=even(K, 0.01)[permutation],
            start=lambda k: problem.spread(int(permutation[k])),  # noqa: B023
        )
        for _ in range(6):
            optimizer.step(problem)
        results.append(problem.theta(optimizer))
    torch.testing.assert_close(results[1], results[0][order], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("transfer", [Hat(every=1), Spectral(every=1), Mean(0.3)], ids=lambda rule: type(rule).__name__)
def test_a_common_shift_passes_through_unchanged(transfer: Any) -> None:
    results = []
    for shift in (0.0, 1024.0):
        problem = Quadratics()
        optimizer = make(problem, base=SGD(), lr=0.0, transfer=transfer, start=problem.spread)
        for k in range(K):
            with optimizer.subproblem(k), torch.no_grad():
                for p in problem.parameters():
                    p.add_(shift)
        for _ in range(3):
            optimizer.step(problem)
        results.append(problem.theta(optimizer) - shift)
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-11)
    problem = Quadratics()
    equal = make(problem, base=SGD(), lr=0.0, transfer=Mean(0.3))
    before = snapshot(equal)["parameters"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the shared batch
        equal.step(problem)
    assert_same(snapshot(equal)["parameters"], before)  # equal rows keep their bits


# ---------------------------------------------------------------------- groups apart from the transfer
@pytest.mark.parametrize("transfer", [Hat(every=1), Spectral(every=1, relative=True)], ids=["hat", "changes"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_groups_without_transfer_are_independent_runs(transfer: Any, dtype: torch.dtype) -> None:
    results = []
    for rule in (transfer, None):
        model = make_model(dtype)
        trunk, head = list(model[0].parameters()), list(model[2].parameters())
        optimizer = MT2OFused(
            [{"params": trunk, "transfer": False}, {"params": head}],
            num_tasks=2, num_subproblems=K, transfer=rule, lr=1e-2,
        )  # fmt: skip
        generator = torch.Generator().manual_seed(0)
        for _ in range(4):
            for _ in optimizer.subproblems():
                for p in model.parameters():
                    p.grad = torch.randn(p.shape, generator=generator).to(dtype)
            optimizer.step()
            optimizer.zero_grad()
        results.append(rows(optimizer, model))
    for row, other in zip(*results, strict=True):
        assert_same(row[:2], other[:2])
        assert not torch.equal(row[2], other[2])


@pytest.mark.parametrize("moments", [Moments.MIX, Moments.MIX_SQUARED])
def test_moments_are_blended_if_asked_for(moments: Moments) -> None:
    problem = Quadratics()
    seen = []
    for blend in (Moments.KEEP, moments):
        problem = Quadratics()
        optimizer = make(problem, transfer=lambda c: stochastic(c.preferences), moments=blend, start=problem.spread)
        optimizer.step(problem)
        seen.append([optimizer.state[problem.first][key].clone() for key in ("exp_avg", "exp_avg_sq")])
    mix = stochastic(optimizer.preferences)
    second = mix * mix if moments is Moments.MIX_SQUARED else mix
    torch.testing.assert_close(seen[1][0], mix @ seen[0][0])
    torch.testing.assert_close(seen[1][1], second @ seen[0][1])


# ---------------------------------------------------------------------- warnings, start, defaults
def test_one_shared_batch_is_reported_once_for_fixed_rules() -> None:
    x = torch.randn(8, 7)

    def run(model: nn.Module, optimizer: MT2OFused) -> None:
        optimizer.step(lambda: task_losses(model(x), x[:, 0]))

    model = make_model()
    fixed = make(model, transfer=Hat())
    with pytest.warns(UserWarning, match="share their mini-batches"):
        run(model, fixed)
    run(model, fixed)
    for transfer in (Spectral(), None):
        model = make_model()
        run(model, make(model, transfer=transfer))
    model = make_model()
    train(make(model, transfer=Hat()), model, Batches(), 2)


def test_start_gives_each_subproblem_its_own_beginning() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = make_model(dtype, norm=True)

        def start(k: int, model: nn.Module = model) -> None:
            with torch.no_grad():
                for tensor in [*model.parameters(), *model.buffers()]:
                    tensor.fill_(k)

        optimizer = make(model, start=start, ema=0.9, buffers=model.buffers())
        for k in range(K):
            for ema in (False, True):
                with optimizer.subproblem(k, ema=ema):
                    assert all((tensor == k).all() for tensor in [*model.parameters(), *model.buffers()])


def test_defaults() -> None:
    optimizer = make(make_model())
    assert_same(optimizer.preferences, even(K, 0.01))
    three = MT2OFused(make_model().parameters(), num_tasks=3, num_subproblems=6)
    expected = 0.01 + 0.97 * riesz_energy(6, 3)
    torch.testing.assert_close(three.preferences, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MT2OFused(make_model().parameters(), num_tasks=2, num_subproblems=1)
    with pytest.warns(UserWarning, match="Spectral transfers nothing"):
        MT2OFused(make_model().parameters(), num_tasks=2, num_subproblems=2, front="rows")


def test_the_front_of_quadratics_is_reached() -> None:
    problem = Quadratics()
    optimizer = make(problem, base=SGD(), lr=0.2, transfer=None)
    for _ in range(1200):
        optimizer.step(problem)
    curvature = torch.einsum("kt,tij->kij", optimizer.preferences, problem.curvature)
    pull = torch.einsum("kt,tij,tj->ki", optimizer.preferences, problem.curvature, problem.centre)
    torch.testing.assert_close(problem.theta(optimizer), torch.linalg.solve(curvature, pull), rtol=1e-6, atol=1e-6)
    front = optimizer.front(problem, reference=[100.0, 100.0], task_names=["a", "b"])
    assert front.non_dominated.all() and (front.losses[:, 0].diff() > 0).all() and (front.losses[:, 1].diff() < 0).all()


def test_two_dtypes_in_one_model() -> None:
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(7, 12).double(), nn.Linear(12, 2)])

    def losses(batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return task_losses(model[1](model[0](x.double()).float().tanh()), y)

    batches = Batches()
    optimizer = make(model, transfer=Spectral(every=2), ema=0.9)
    first = optimizer.front(lambda: losses(next(Batches(9)))).losses
    for _ in range(40):
        optimizer.step(lambda: losses(next(batches)))
    last = optimizer.front(lambda: losses(next(Batches(9)))).losses
    assert ((optimizer.preferences * last).sum(1) < (optimizer.preferences * first).sum(1)).all()
    assert [p.dtype for p in model.parameters()] == [torch.float64] * 2 + [torch.float32] * 2


# ---------------------------------------------------------------------- one number for all subproblems
def test_few_models_for_many_tasks_in_a_loop_as_in_a_bank() -> None:
    """A loop knows the losses of the other models of the step before; where nothing moves, these are the same."""
    targets = torch.tensor([0.0, 1.0, 5.0, 6.0])
    preferences = [[0.25] * 4] * 2

    def losses(x: Tensor) -> Tensor:
        return (x.unsqueeze(-1) - targets).square()

    bank = nn.Parameter(torch.tensor([2.0, 4.0]))
    stacked = MT2OFused([bank], num_tasks=4, num_subproblems=2, preferences=preferences, base=SGD(), lr=0.0,
                        transfer=None, stacked=True, scalarization=FewForMany(mu=0.1))  # fmt: skip
    one = nn.Parameter(torch.tensor(0.0))
    optimizer = MT2OFused([one], num_tasks=4, num_subproblems=2, preferences=preferences, base=SGD(), lr=0.0,
                          transfer=None, scalarization=FewForMany(mu=0.1),
                          start=lambda k: one.data.fill_((2.0, 4.0)[k]))  # fmt: skip
    stacked.backward(losses(bank))
    assert bank.grad is not None
    for _ in range(2):  # in the first round the first model knows nothing of the second
        grads = []
        for _ in optimizer.subproblems():
            optimizer.backward(losses(one))
            assert one.grad is not None
            grads.append(one.grad.clone())
        state = optimizer.state_dict()
        optimizer.step()
    torch.testing.assert_close(torch.stack(grads), bank.grad)
    assert bank.grad[0] > 0.4 > -0.4 > bank.grad[1]  # each model goes to the tasks that it is best at
    last = state["param_groups"][0]["mt2o"]["last_losses"]
    torch.testing.assert_close(last, losses(torch.tensor([2.0, 4.0])).double())
    optimizer.load_state_dict(state)
    assert torch.equal(optimizer.state_dict()["param_groups"][0]["mt2o"]["last_losses"], last)
