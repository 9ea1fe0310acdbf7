"""Bad input: a clear error, and nothing changed before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mt2o_ext import MT2OFused, SubproblemBank
from mt2o_ext.base import SGD, Adam, AdamW
from mt2o_ext.scalarization import Linear
from mt2o_ext.transfer import Hat, Mean, Moments, Spectral, TransferContext
from support.optim.bad_losses import LOSSES
from support.optim.problems import Batches, assert_same, make_model, seeded, snapshot, task_losses, train

P = nn.Parameter


def make(params: Any = None, **options: Any) -> MT2OFused:
    params = [P(torch.ones(3))] if params is None else params
    return MT2OFused(params, **seeded(**{"num_tasks": 2, "num_subproblems": 3, "transfer": None, **options}))


# ---------------------------------------------------------------------- construction
CONSTRUCTION: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no subproblem": (lambda: make(num_subproblems=0), ValueError, ">= 1"),
    "no task": (lambda: make(num_tasks=0), ValueError, ">= 1"),
    "order": (lambda: make(order="other"), ValueError, "expected order as one of"),
    "relative order": (
        lambda: make(num_subproblems=5, transfer=Spectral(relative=True), order="adapt_then_combine"),
        ValueError,
        "relative",
    ),
    "order of another type": (lambda: make(order=1), ValueError, "expected order as one of"),
    "word for ema": (lambda: make(ema="0.9"), TypeError, "expected ema as a float"),
    "number for stacked": (lambda: make(stacked=1), TypeError, "expected stacked as True or False"),
    "start": (lambda: make(transfer=None, start=3), TypeError, "expected start as a function, got int"),
    "no choice of moments": (lambda: make(moments="mix"), TypeError, "expected moments as one of Moments, got 'mix'"),
    "buffers of no kind": (lambda: make(buffers=None), TypeError, "expected buffers= as a list.*pass model.buffers"),
    "one buffer": (lambda: make(buffers=torch.ones(2)), TypeError, "expected buffers= as a list.*got Tensor"),
    "ema": (lambda: make(ema=1.0), ValueError, "expected ema < 1"),
    "skip": (lambda: make(skip_nonfinite="no"), ValueError, "skip_nonfinite"),
    "lr": (lambda: make(lr=-1.0), ValueError, "expected lr finite"),
    "lr of nan": (lambda: make(lr=float("nan")), ValueError, "expected lr finite"),
    "lr of two": (lambda: make(lr=torch.ones(2)), ValueError, "one-element"),
    "betas": (lambda: make(base=AdamW(betas=(0.9, 1.0))), ValueError, r"betas\[1\]"),
    "eps": (lambda: make(base=Adam(eps=-1.0)), ValueError, "eps"),
    "weight decay": (lambda: make(base=SGD(weight_decay=-0.1)), ValueError, "weight_decay"),
    "nesterov": (lambda: make(base=SGD(nesterov=True)), ValueError, "for nesterov=True"),
    "base": (lambda: make(base="lamb"), ValueError, "expected base as"),
    "a matrix for transfer": (lambda: make(transfer=torch.eye(3)), TypeError, "transfer"),
    "transfer class": (lambda: make(transfer=Spectral), TypeError, "instance"),
    "scalarization": (lambda: make(scalarization="linaer"), ValueError, "name of a scalarization.*mean 'linear'"),
    "scalarization class": (lambda: make(scalarization=Linear), TypeError, "pass an instance"),
    "moments": (lambda: make(num_subproblems=5, transfer=Hat(), moments=Moments.MIX), ValueError, "moments"),
    "preferences off the simplex": (lambda: make(preferences=[[1, 0], [0.5, 0.6], [0, 1]]), ValueError, "sum to 1"),
    "negative preferences": (lambda: make(preferences=[[1, 0], [-0.5, 1.5], [0, 1]]), ValueError, "not negative"),
    "preferences' shape": (lambda: make(preferences=[[1, 0], [0, 1]]), ValueError, "one row for each subproblem"),
    "start of a bank": (lambda: make([P(torch.ones(3, 2))], stacked=True, start=print), ValueError, "start="),
    "buffers": (lambda: make(buffers=[1]), TypeError, "buffers"),
    "process group": (lambda: make(process_group=3), TypeError, "process_group as a ProcessGroup"),
    "heads without a weighting": (lambda: make(heads="wieghted"), ValueError, "expected heads as one of"),
    "collect without a weighting": (lambda: make(collect="vmap"), ValueError, "expected collect as one of"),
    "generator without a weighting": (lambda: make(generator=3), TypeError, "expected generator"),
    "idle heads": (lambda: make(heads="weighted"), ValueError, "heads= would have no effect without weighting="),
    "idle collect": (lambda: make(collect="batched"), ValueError, "collect= would have no effect"),
    "idle generator": (lambda: make(generator=torch.Generator()), ValueError, "generator= would have no effect"),
    "several idle ones": (
        lambda: make(heads="weighted", collect="batched"),
        ValueError,
        "heads=, collect= would have no effect",
    ),
    "no parameter": (lambda: make([]), ValueError, "empty parameter list"),
    "no tensor": (lambda: make([1.0]), TypeError, "expected tensors"),
    "a set": (lambda: make([{"params": {P(torch.ones(2))}}]), TypeError, "ordered"),
    "complex": (lambda: make([P(torch.ones(2, dtype=torch.complex64))]), TypeError, "complex64"),
    "sparse": (lambda: make([P(torch.ones(2, 2).to_sparse())]), TypeError, "layout"),
    "meta": (lambda: make([P(torch.ones(2, device="meta"))]), ValueError, "one device"),
    "two devices": (lambda: make([P(torch.ones(2)), P(torch.ones(2, device="meta"))]), ValueError, "one device"),
    "lazy": (lambda: make(nn.LazyLinear(2).parameters()), ValueError, "initialized"),
    "not a leaf": (lambda: make([torch.ones(2, requires_grad=True) * 2]), ValueError, "leaf"),
    "not stacked": (lambda: make([P(torch.ones(2))], stacked=True), ValueError, "leading dimension 3"),
    "a scalar, stacked": (lambda: make([P(torch.ones(()))], stacked=True), ValueError, "leading dimension 3"),
}


@pytest.mark.parametrize("name", CONSTRUCTION)
def test_construction(name: str) -> None:
    function, error, text = CONSTRUCTION[name]
    with pytest.raises(error, match=text):
        function()


@pytest.mark.parametrize("front", ["vertices", "rows"])
def test_functions_and_numbers_of_calls(front: str) -> None:
    p = P(torch.ones(3))
    optimizer = MT2OFused([p], num_tasks=2, num_subproblems=5, front=front, buffers=[torch.zeros(1)])
    before = snapshot(optimizer)
    calls: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (lambda: optimizer.step(3), TypeError, "expected closure as a function, got int"),
        (lambda: optimizer.front([1.0, 2.0]), TypeError, "expected evaluate as a function, got list"),
        (lambda: optimizer.front(lambda: 3), TypeError, "expected losses as a tensor or a sequence"),
        (lambda: optimizer.update_buffers(None), TypeError, "expected update as a function"),
        (lambda: optimizer.front(lambda: [1.0, 2.0], ema=0.9), TypeError, "expected ema as True or False, got 0.9"),
        (
            lambda: optimizer.front(lambda: [1.0, 2.0], ema=True),
            ValueError,
            "running average for ema=True",
        ),
        (lambda: optimizer.subproblem("x").__enter__(), TypeError, "expected subproblem as an int, got 'x'"),
        (lambda: optimizer.subproblem(0.5).__enter__(), TypeError, "expected subproblem as an int, got 0.5"),
        (lambda: optimizer.subproblem(-1).__enter__(), IndexError, r"expected a subproblem 0 \.\. 4, got -1"),
    ]
    for call, error, words in calls:
        with pytest.raises(error, match=words):
            call()
    assert_same(snapshot(optimizer), before)
    with optimizer.subproblem(torch.tensor(1)):
        pass


def test_a_parameter_given_twice() -> None:
    p = P(torch.ones(3))
    with pytest.raises(ValueError, match="twice"):
        make([p, p])
    with pytest.raises(ValueError, match="more than one parameter group"):
        make([{"params": [p]}, {"params": [p]}])
    assert p.untyped_storage().nbytes() == 12  # not a view into a buffer


def test_parameters_that_share_memory() -> None:
    base = torch.arange(12.0)
    for first, second in ((base[:8], base[7:]), (base, base.reshape(3, 4)), (base[::2], base[2:3])):
        with pytest.raises(ValueError, match="share memory"):
            make([P(first), P(second)])
        with pytest.raises(ValueError, match="share memory"):
            make([{"params": [P(first)]}, {"params": [P(second)]}])
    make([P(base[:6]), P(base[6:])])
    columns = base.reshape(3, 4)
    make([P(columns[:, :2]), P(columns[:, 2:])])  # side by side, no element in common


def test_add_param_group_changes_nothing_before_the_error(front: str) -> None:
    model = make_model()
    optimizer = make(model.parameters(), num_subproblems=5, ema=0.9, front=front)
    train(optimizer, model, Batches(), 2)
    before, pointers = snapshot(optimizer), [p.data_ptr() for p in model.parameters()]
    weight = next(model.parameters())
    bad: list[Any] = [
        {"params": [weight]},
        {"params": [P(weight.detach()[1:])]},
        {"params": [P(torch.ones(2, dtype=torch.complex64))]},
        {"params": [P(torch.ones(2))], "lr": -1.0},
        {"params": [P(torch.ones(2))], "betas": (2.0, 0.9)},
        {"params": [P(torch.ones(2, device="meta"))]},
        [P(torch.ones(2))],
    ]
    for group in bad:
        with pytest.raises((TypeError, ValueError)):
            optimizer.add_param_group(group)
    assert_same(snapshot(optimizer), before)
    assert [p.data_ptr() for p in model.parameters()] == pointers


# ---------------------------------------------------------------------- losses
@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str, front: str) -> None:
    function, error, text = LOSSES[name]
    model = make_model()
    optimizer = make(model.parameters(), front=front)
    before = snapshot(optimizer)
    with pytest.raises(error, match=text):
        optimizer.backward(function(model))
    assert all(p.grad is None for p in model.parameters())
    if name == "nothing":  # a closure may say so that it has done backward itself
        error, text = RuntimeError, "needs gradients"
    with pytest.raises(error, match=text):
        optimizer.step(lambda: function(model))
    assert_same(snapshot(optimizer), before)


def test_a_step_without_any_gradient(front: str) -> None:
    for num_subproblems in (1, 3):
        model = make_model()
        optimizer = make(model.parameters(), num_subproblems=num_subproblems, front=front)
        before = snapshot(optimizer)
        with pytest.raises(RuntimeError, match="backward"):
            optimizer.step()
        assert_same(snapshot(optimizer), before)


# ---------------------------------------------------------------------- transfer matrices
MATRICES: dict[str, tuple[Callable[[TransferContext], Any], str]] = {
    "shape": (lambda context: torch.eye(4), "shape"),
    "segments": (lambda context: torch.eye(3).expand(7, 3, 3), "shape"),
    "rows": (lambda context: torch.full((3, 3), 0.3), "sum to 1"),
    "growing": (lambda context: 3 * torch.eye(3) - 2 / 3, "spectrum"),
    "neither": (lambda context: torch.tensor([[2.0, -1, 0], [0, 1, 0], [0, 0, 1]]), "non-negative or symmetric"),
    "nan": (lambda context: torch.full((3, 3), float("nan")), "finite"),
}


@pytest.mark.parametrize("name", MATRICES)
def test_transfer_matrices_of_the_user(name: str) -> None:
    function, text = MATRICES[name]
    model = make_model()
    optimizer = make(model.parameters(), transfer=function, ema=0.9)
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=text):
        train(optimizer, model, Batches(), 1)
    after = snapshot(optimizer)
    assert_same(after, before)


def test_signed_matrices_must_not_blend_moments() -> None:
    signed = torch.eye(3) - 0.5 * torch.tensor([[1.0, -2, 1], [-2, 4, -2], [1, -2, 1]]) / 3
    model = make_model()
    optimizer = make(model.parameters(), transfer=lambda context: signed, moments=Moments.MIX)
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match="moments"):
        train(optimizer, model, Batches(), 1)
    assert_same(snapshot(optimizer), before)


# ---------------------------------------------------------------------- gradients
@pytest.mark.parametrize("num_subproblems", [1, 3])
def test_sparse_gradients(num_subproblems: int, front: str) -> None:
    model = nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Linear(3, 2))
    optimizer = make(model.parameters(), num_subproblems=num_subproblems, front=front)
    before = snapshot(optimizer)

    def losses() -> Tensor:
        return model(torch.tensor([1, 2])).square().mean(0)

    with pytest.raises(TypeError, match="sparse=False"):
        optimizer.step(losses)
    assert_same(snapshot(optimizer), before)
    with pytest.raises(TypeError, match="sparse=False"):  # noqa: PT012
        for _ in optimizer.subproblems():
            optimizer.backward(losses())
        optimizer.step()
    optimizer.zero_grad()
    model[0].sparse = False
    optimizer.step(losses)
    assert (optimizer.state[model[1].weight]["step"] == 1).all()


# ---------------------------------------------------------------------- closures and parameters
@pytest.mark.parametrize("stacked", [False, True])
def test_a_closure_that_raises_leaves_everything_usable(stacked: bool, front: str) -> None:
    model: nn.Module = make_model()
    bank = SubproblemBank(model, 5) if stacked else model
    transfer = Mean(0.1) if front == "rows" else None
    optimizer = make(bank.parameters(), num_subproblems=5, transfer=transfer, stacked=stacked, front=front)
    calls = []
    batches = Batches()

    def closure() -> Tensor:
        calls.append(1)
        if len(calls) == (1 if stacked else 3):
            raise KeyError("in the middle")
        x, y = next(batches)
        return task_losses(bank(x, shared=True), y) if stacked else task_losses(bank(x), y)

    before = snapshot(optimizer)
    with pytest.raises(KeyError):
        optimizer.step(closure)
    assert_same(snapshot(optimizer), before)
    assert all(p.grad is None for p in bank.parameters())
    with pytest.raises(RuntimeError, match="needs gradients"):
        optimizer.step()
    if not stacked:
        optimizer.step(closure)
        assert all((optimizer.state[p]["step"] == 1).all() for p in bank.parameters())


def test_a_parameter_of_another_shape(front: str) -> None:
    model = make_model()
    optimizer = make(model.parameters(), front=front)
    train(optimizer, model, Batches(), 1)
    weight = next(model.parameters())
    kept = snapshot(optimizer)["state"]
    for new in (torch.ones(5), weight.data[:1]):
        weight.data = new
        weight.grad = torch.ones_like(new)
        with pytest.raises(ValueError, match="shape"):
            optimizer.step()
        assert_same(snapshot(optimizer)["state"], kept)


def test_subproblems_that_are_not_there(front: str) -> None:
    optimizer = make(front=front)
    for k in (-1, 3):
        with pytest.raises(IndexError, match=r"0 \.\. 2"), optimizer.subproblem(k):
            pass
    with pytest.raises(ValueError, match="running average"), optimizer.subproblem(0, ema=True):
        pass
    with pytest.raises(RuntimeError, match="stacked=True"), optimizer.all_subproblems(ema=True):
        pass
    stacked = make([P(torch.ones(3, 2))], stacked=True, front=front)
    with pytest.raises(RuntimeError, match=r"bank\.subproblem"), stacked.subproblem(0):
        pass
    with pytest.raises(RuntimeError, match=r"bank\.subproblem"):
        next(stacked.subproblems())
