"""State, skipped steps, bad input and diagnostics of ConnectionStrengthFused."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mt2o_ext import ConnectionStrengthFused
from mt2o_ext.priority import Connection, TaskBatchNorm, find_connections, mixed, phase_one, phase_two
from support.optim.priority_model import TASKS, Batches, Network, network, optimizer_of, same_parameters


def run(model: Network, optimizer: ConnectionStrengthFused, batches: Batches, steps: int) -> None:
    for _ in range(steps):
        optimizer.step(batches.draw().loss(model))


def mixed_run(seed: int = 0) -> tuple[Network, ConnectionStrengthFused, Batches]:
    model = network()
    return model, optimizer_of(model, schedule=mixed, total_steps=12, shuffle=True, seed=seed), Batches()


def test_runs_repeat_bit_for_bit() -> None:
    first, second = mixed_run(), mixed_run()
    run(*first, 12)
    run(*second, 12)
    assert same_parameters(first[0], second[0])
    phases = first[1].history().phases
    assert set(phases.tolist()) == {1, 2}
    assert torch.equal(phases, second[1].history().phases)


def test_the_seed_is_what_changes_the_phases() -> None:
    first, second = mixed_run(0), mixed_run(5)
    run(*first, 12)
    run(*second, 12)
    assert not torch.equal(first[1].history().phases, second[1].history().phases)


@pytest.mark.parametrize("at", [1, 5, 9])
def test_resume_is_bit_for_bit(at: int) -> None:
    model, optimizer, batches = mixed_run()
    run(model, optimizer, batches, at)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    other, resumed, _ = mixed_run(seed=9)
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    same_batches = copy.deepcopy(batches)
    run(model, optimizer, batches, 12 - at)
    run(other, resumed, same_batches, 12 - at)
    assert same_parameters(model, other)
    for mine, theirs in zip(vars(optimizer.history()).values(), vars(resumed.history()).values(), strict=True):
        assert torch.equal(mine, theirs) if isinstance(mine, Tensor) else mine == theirs


def test_state_dicts_are_plain_data() -> None:
    model, optimizer, batches = mixed_run()
    run(model, optimizer, batches, 8)
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    optimizer.load_state_dict(torch.load(buffer, weights_only=True))


def pickled(pair: Any) -> Any:
    return pickle.loads(pickle.dumps(pair))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_copies_go_on_alike(copied: Callable[[Any], Any]) -> None:
    model, optimizer, batches = mixed_run()
    run(model, optimizer, batches, 4)
    other_model, other_optimizer = copied((model, optimizer))
    other_batches = copy.deepcopy(batches)
    run(model, optimizer, batches, 6)
    run(other_model, other_optimizer, other_batches, 6)
    assert same_parameters(model, other_model)


def test_a_model_that_changes_its_dtype_goes_on() -> None:
    model, optimizer, batches = mixed_run()
    run(model, optimizer, batches, 3)
    model.double()
    batches.dtype = torch.float64
    run(model, optimizer, batches, 5)
    assert optimizer.history().shares.shape[1:] == (2, TASKS + 1)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_nonfinite_gradient_skips_the_step_whole(bad: float) -> None:
    model = network()
    optimizer, batches = optimizer_of(model), Batches()
    optimizer.step(batches.loss(model))
    before = {name: value.clone() for name, value in model.named_parameters()}
    state = copy.deepcopy(optimizer.state_dict()["state"][0])
    with pytest.warns(UserWarning, match="infinite or NaN: this step was skipped"):
        optimizer.step(lambda task: batches.loss(model)(task) * (bad if task == 1 else 1.0))
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    after = optimizer.state_dict()["state"][0]
    assert all(torch.equal(value, after[key]) for key, value in state.items())
    assert optimizer.skipped_steps.tolist() == [1]
    optimizer.step(batches.loss(model))
    assert not torch.equal(model.trunk[0].weight, before["trunk.0.weight"])


def test_phase_one_skips_the_steps_of_one_task() -> None:
    model = network()
    optimizer, batches = optimizer_of(model, schedule=phase_one), Batches()
    with pytest.warns(UserWarning, match="infinite or NaN"):
        optimizer.step(lambda task: batches.loss(model)(task) * (torch.nan if task == 1 else 1.0))
    assert optimizer.skipped_steps.tolist() == [1]
    assert model.heads[1].weight not in optimizer.state or float(optimizer.state[model.heads[1].weight]["step"]) == 0
    assert float(optimizer.state[model.trunk[0].weight]["step"]) == TASKS - 1
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_after_total_steps_phase_two_stays_with_one_warning() -> None:
    model = network()
    optimizer, batches = optimizer_of(model, schedule=mixed, total_steps=3), Batches()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(model, optimizer, batches, 8)
    assert [str(w.message) for w in caught] == ["this is step 4 of 3: phase 2 stays"]
    assert optimizer.history().phases[3:].tolist() == [2] * 5
    assert optimizer.last_phase == 2


@pytest.mark.parametrize("schedule", [phase_one, phase_two])
def test_a_closure_that_fails_changes_nothing(schedule: Callable[[float], float]) -> None:
    model = network()
    optimizer = optimizer_of(model, schedule=schedule)
    before = copy.deepcopy(dict(model.named_parameters()))
    failing: dict[type[Exception], Callable[[int], Any]] = {
        KeyError: lambda task: {}[task],
        ValueError: lambda task: torch.ones(2, requires_grad=True),
        TypeError: lambda task: 1.0,
        RuntimeError: lambda task: torch.ones((), requires_grad=True).square(),
    }
    for error, closure in failing.items():
        with pytest.raises(error):
            optimizer.step(closure)
    assert optimizer.last_phase == 0, "there was no step yet"
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters())
    assert len(optimizer.history().phases) == 0
    with pytest.raises(TypeError, match="expected step\\(closure\\), got none"):
        optimizer.step()


def test_a_failed_step_that_is_repeated_draws_the_same() -> None:
    """Phases, orders of tasks and parameters are those of a run in which nothing failed."""
    (model, optimizer, batches), (other, repeating, other_batches) = mixed_run(), mixed_run()
    calls: list[list[int]] = [[], []]

    def watched(task: int, of: int, loss: Callable[[int], Tensor]) -> Tensor:
        calls[of].append(task)
        return loss(task)

    def fails(task: int) -> Tensor:
        raise KeyError(task)

    for _ in range(12):
        loss, other_loss = batches.draw().loss(model), other_batches.draw().loss(other)
        optimizer.step(lambda task: watched(task, 0, loss))  # noqa: B023
        phase = repeating.last_phase
        for _ in range(3):  # a few draws too many, if they were not taken back
            with pytest.raises(KeyError):
                repeating.step(fails)
        assert repeating.last_phase == phase
        repeating.step(lambda task: watched(task, 1, other_loss))  # noqa: B023
    assert calls[0] == calls[1]
    assert torch.equal(optimizer.history().phases, repeating.history().phases)
    assert same_parameters(model, other)


def test_one_infinite_loss_skips_the_step_of_phase_two() -> None:
    """Also where all gradients are finite."""
    model = network()
    optimizer, batches = optimizer_of(model), Batches()
    before = copy.deepcopy(dict(model.named_parameters()))
    with pytest.warns(UserWarning, match="infinite or NaN: this step was skipped"):
        optimizer.step(lambda task: batches.loss(model)(task) + (torch.inf if task == 1 else 0.0))
    assert optimizer.skipped_steps.tolist() == [1]
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_history_and_its_report_and_plot() -> None:
    pytest.importorskip("matplotlib", reason="plots need matplotlib (the extra `pareto`)")
    model, optimizer, batches = mixed_run()
    with pytest.raises(ValueError, match="expected a run with steps of phase 2"):
        optimizer.history().plot()
    run(model, optimizer, batches, 12)
    history = optimizer.history()
    assert list(history.layers) == ["trunk.0", "trunk.3"]
    assert history.steps.tolist() == (history.phases == 2).nonzero().flatten().tolist()
    torch.testing.assert_close(history.shares.sum(2), torch.ones(len(history.steps), 2))
    assert bool(((history.conflicts >= 0) & (history.conflicts <= 1)).all())
    report = str(history).splitlines()
    assert report[0] == f"12 steps, {int((history.phases == 1).sum())} of them phase 1"
    assert [line.split()[0] for line in report[1:]] == ["layer", "trunk.0", "trunk.3"]
    figure = history.plot()
    assert [axes.get_title() for axes in figure.axes] == ["trunk.0", "trunk.3"]


def test_frozen_layers() -> None:
    """Among the parameters or not: they stay, and the rest is trained."""
    for among in (True, False):
        model = network()
        model.trunk[0].weight.requires_grad_(False)
        named = [(name, p) for name, p in model.named_parameters() if among or p.requires_grad]
        optimizer = ConnectionStrengthFused(
            named, connections=find_connections(model), num_tasks=TASKS, total_steps=9, schedule=phase_two
        )
        before = copy.deepcopy(model)
        run(model, optimizer, Batches(), 2)
        assert torch.equal(model.trunk[0].weight, before.trunk[0].weight)
        assert not torch.equal(model.trunk[3].weight, before.trunk[3].weight)


def test_a_scheduler_advances_the_rate() -> None:
    model = network()
    optimizer = optimizer_of(model)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.0)
    batches = Batches()
    optimizer.step(batches.loss(model))
    scheduler.step()
    before = copy.deepcopy(dict(model.named_parameters()))
    optimizer.step(batches.loss(model))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def without_statistics() -> TaskBatchNorm:
    return TaskBatchNorm(nn.BatchNorm2d(6, track_running_stats=False), TASKS)


def ones(layer: nn.Module) -> Tensor:
    return torch.ones(TASKS, 5)


# Options, made from the model; the error; what it says.
BAD: dict[str, tuple[Callable[[Network], dict[str, Any]], type[Exception], str]] = {
    "tasks of the norms": (lambda m: {"num_tasks": 2}, ValueError, r"trunk.0: expected a norm of 2 tasks .* one of 3"),
    "number of tasks": (lambda m: {"num_tasks": 0}, ValueError, "expected num_tasks >= 1, got 0"),
    "number of steps": (lambda m: {"total_steps": 0}, ValueError, "expected total_steps >= 1, got 0"),
    "steps per epoch": (lambda m: {"steps_per_epoch": 0}, ValueError, "steps_per_epoch >= 1"),
    "no connections": (lambda m: {"connections": None}, TypeError, r"expected connections as a list.*find_connections"),
    "no schedule": (lambda m: {"schedule": 0.5}, TypeError, "expected schedule as a function, got float"),
    "word for shuffle": (lambda m: {"shuffle": "no"}, TypeError, "expected shuffle as True or False"),
    "no seed": (lambda m: {"seed": None}, TypeError, "expected seed as an int, got None"),
    "mode": (lambda m: {"mode": "paper"}, ValueError, "expected mode as one of 'faithful', 'general', got 'paper'"),
    "not there": (
        lambda m: {"params": [*m.heads.parameters()]},
        ValueError,
        "expected its weight among the parameters",
    ),
    "in a head": (
        lambda m: {"params": [{"params": m.trunk.parameters(), "task": 0}, {"params": m.heads.parameters()}]},
        ValueError,
        "expected a shared weight, got one in a group with task=",
    ),
    "no such task": (
        lambda m: {"params": [{"params": m.trunk.parameters()}, {"params": m.heads.parameters(), "task": 3}]},
        ValueError,
        r"task in 0 \.\. 2, got 3",
    ),
    "twice": (
        lambda m: {"connections": [*find_connections(m)] * 2},
        ValueError,
        "trunk.0: expected a weight of its own, got that of trunk.0",
    ),
    "no connection": (lambda m: {"connections": [m.trunk[0]]}, TypeError, r"expected connections .*, got Conv2d"),
    "shape of strengths": (
        lambda m: {"connections": [Connection("a", m.trunk[0], None, strength=ones)]},
        ValueError,
        r"a: expected strengths of shape \[3, 6\], got \[3, 5\]",
    ),
    "statistics": (
        lambda m: {"connections": [Connection("a", m.trunk[0], without_statistics())]},
        ValueError,
        "track_running_stats=True",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case: str) -> None:
    options, error, text = BAD[case]
    model = network()
    usual = {"params": [*model.parameters()], "connections": find_connections(model), "num_tasks": TASKS}
    with pytest.raises(error, match=text):
        ConnectionStrengthFused(**{**usual, "total_steps": 9, **options(model)})


def test_a_schedule_that_gives_no_probability() -> None:
    model = network()
    optimizer = optimizer_of(model, schedule=lambda progress: 2.0)
    with pytest.raises(ValueError, match=r"expected a probability from the schedule, got 2\.0"):
        optimizer.step(Batches().loss(model))


def test_without_connections_there_is_a_warning() -> None:
    with pytest.warns(UserWarning, match="phase 2 is the plain sum"):
        ConnectionStrengthFused(nn.Linear(2, 2).parameters(), connections=[], num_tasks=2, total_steps=3)


def test_state_of_another_model_is_refused() -> None:
    model, optimizer, batches = mixed_run()
    run(model, optimizer, batches, 2)
    other_model = network()
    other = optimizer_of(other_model, connections=[find_connections(other_model)[0]])
    with pytest.raises(ValueError, match="expected the state of 1 connections and 3 tasks, got one of 2 and 3"):
        other.load_state_dict(optimizer.state_dict())


def test_repr_names_the_options() -> None:
    assert repr(optimizer_of(network())).startswith(
        "ConnectionStrengthFused (num_tasks=3, connections=2 of 2, mode=faithful, total_steps=10"
    )
