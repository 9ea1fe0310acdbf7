"""A step in a CUDA graph: replays do what as many steps of the host would have done."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from itertools import cycle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mt2o_ext import ConnectionStrengthFused, HarmonyFused, MT2OFused
from mt2o_ext.base import SGD, AdamW
from mt2o_ext.transfer import (
    CrossLearning,
    DistanceDecrease,
    Hat,
    Identity,
    LinearDecay,
    Mean,
    Spectral,
    TransferRule,
    WithLearningRate,
)
from mt2o_ext.weighting import CAGrad, Needs, UPGrad
from support.optim.graphs import Graphs, graphs
from support.optim.problems import assert_same, make_model, parameters, task_losses
from support.optim.towers import WEIGHTINGS, Towers, batch_of, values, weighted

__all__ = ["graphs"]

WARM, REPLAYS = 2, 3


class Run:
    """A model, its optimizer, and a batch whose memory stays the same."""

    def __init__(self, model: nn.Module, optimizer: Any, losses: Callable[[nn.Module, Tensor], Any], rows: int = 1):
        self.model, self.optimizer, self.losses = model, optimizer, losses
        self.batch = torch.zeros(rows, 16, 7, device=next(model.parameters()).device)
        self.seed = 0

    def next_batch(self) -> None:
        self.batch.copy_(torch.stack([batch_of(31 * self.seed + row) for row in range(len(self.batch))]))
        self.seed += 1

    def step(self) -> None:
        rows = cycle(self.batch)  # once more from the beginning for feedback
        self.optimizer.step(lambda: self.losses(self.model, next(rows)))

    def eager(self, count: int) -> None:
        for _ in range(count):
            self.next_batch()
            self.step()

    def result(self) -> Any:
        return values(self.model), self.optimizer.state_dict()["state"], self.optimizer.skipped_steps


def assert_replays(graphs: Graphs, make: Callable[[], Run], *, same: bool = True) -> None:
    """The same results after eager steps alone, and after some of which the last were replayed."""
    run = []
    for replayed in (False, True):
        torch.manual_seed(0)
        run.append(make())
        run[-1].eager(WARM + (0 if replayed else 1 + REPLAYS))
    run[1].next_batch()
    replay = graphs.record(run[1].step)
    for _ in range(REPLAYS):
        run[1].next_batch()
        replay()
    (eager, eager_state, eager_skipped), (graph, graph_state, graph_skipped) = run[0].result(), run[1].result()
    if same:
        assert_same(graph, eager)
        assert_same(without_host_counts(graph_state), without_host_counts(eager_state))
    assert all(p.isfinite().all() for p in graph)
    assert_same(graph_skipped, eager_skipped)


def without_host_counts(state: Any) -> Any:
    """Without the host's numbers and generator, which a replay leaves alone (and skipped steps, which are compared)."""
    if isinstance(state, dict):
        dropped = ("steps", "epoch", "generator", "skipped")
        return {key: without_host_counts(value) for key, value in state.items() if key not in dropped}
    return state


def of_mt2o(graphs: Graphs, **options: Any) -> Callable[[], Run]:
    def losses(model: nn.Module, batch: Tensor) -> Tensor:
        return task_losses(model(batch), batch[:, 0] + batch[:, 1])

    def make() -> Run:
        model = make_model().to(graphs.device)
        given = {"num_tasks": 2, "num_subproblems": 5, "lr": 1e-2, **options}
        return Run(model, MT2OFused(model.parameters(), **given), losses, given["num_subproblems"])

    return make


RULES: dict[str, Callable[[], TransferRule]] = {
    "none": Identity,
    "hat": lambda: Hat(every=1),
    "spectral": lambda: Spectral(every=1),
    "spectral, relative": lambda: Spectral(every=1, relative=True),
    "mean": lambda: Mean(WithLearningRate(0.3)),
    "cross learning, state": lambda: CrossLearning(0.05),
    "distances, state": DistanceDecrease,
}


@pytest.mark.parametrize("name", RULES)
def test_transfers(graphs: Graphs, name: str) -> None:
    def make() -> Run:
        return of_mt2o(graphs, transfer=RULES[name]())()

    assert_replays(graphs, make)


@pytest.mark.parametrize(
    "options",
    [
        {"num_subproblems": 1, "preferences": [[0.5, 0.5]]},
        {"base": AdamW(amsgrad=True), "ema": 0.9},
        {"base": SGD(momentum=0.9)},
        {"order": "adapt_then_combine"},
    ],
    ids=["one subproblem", "amsgrad, ema", "momentum", "adapt then combine"],
)
def test_base_rules(graphs: Graphs, options: dict[str, Any]) -> None:
    assert_replays(graphs, of_mt2o(graphs, **{"transfer": None, **options}))


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_weightings(graphs: Graphs, name: str) -> None:
    def make() -> Run:
        model = Towers().to(graphs.device)
        optimizer = weighted(model, WEIGHTINGS[name](), generator=torch.default_generator)
        return Run(model, optimizer, lambda model, batch: model.losses(batch))

    needs = WEIGHTINGS[name]().needs
    same = Needs.STEPS not in needs and (graphs.same_draws or Needs.DRAWS not in needs)
    warned = needs & (Needs.STEPS | Needs.EPOCHS)
    with pytest.warns(UserWarning, match="as recorded") if warned else nullcontext():
        assert_replays(graphs, make, same=same)


def test_a_weighting_of_each_subproblem(graphs: Graphs) -> None:
    def make() -> Run:
        return of_mt2o(graphs, transfer=Hat(every=1), weighting=UPGrad())()

    assert_replays(graphs, make)


def test_draws_are_new_at_each_replay(graphs: Graphs) -> None:
    model = Towers().to(graphs.device)
    run = Run(model, weighted(model, "rlw"), lambda model, batch: model.losses(batch))
    run.eager(WARM)
    replay, seen = graphs.record(run.step), []
    for _ in range(3):
        replay()
        seen.append(tuple(run.optimizer.weights.flatten().tolist()))
    assert len(set(seen)) == 3


def test_every_second_step_transfers(graphs: Graphs) -> None:
    """Two steps in one graph, with what each does."""
    runs = []
    for replayed in (False, True):
        run = of_mt2o(graphs, transfer=Hat(every=2))()
        run.eager(4)
        run.next_batch()
        if replayed:
            with pytest.warns(UserWarning, match="every 2 steps as recorded: capture 2 steps"):
                replay = graphs.record(lambda run=run: (run.step(), run.step()))  # type: ignore[misc]
            replay()
        else:
            for _ in range(4):
                run.step()
        runs.append(run)
    assert_same(values(runs[1].model), values(runs[0].model))


@pytest.mark.parametrize("rule", [Hat, Spectral])
def test_a_transfer_that_runs_first_in_a_graph(graphs: Graphs, rule: Callable[..., TransferRule]) -> None:
    """Its kernels are loaded there, and it finds all its memory there."""
    runs = []
    for replayed in (False, True):
        run = of_mt2o(graphs, transfer=rule(every=WARM + 1))()
        run.eager(WARM)
        run.next_batch()
        if replayed:
            with pytest.warns(UserWarning, match=f"every {WARM + 1} steps as recorded"):
                graphs.record(run.step)
        else:
            run.step()
        runs.append(run)
    assert_same(values(runs[1].model), values(runs[0].model))


def test_the_learning_rate_is_a_tensor(graphs: Graphs) -> None:
    def lr() -> Tensor:
        return torch.full((), 1e-2, device=graphs.device)

    runs = [of_mt2o(graphs, transfer=None, lr=lr())() for _ in range(2)]
    for run in runs:
        run.eager(WARM)
        run.next_batch()
    runs[0].step()
    replay = graphs.record(runs[1].step)
    for run in runs:
        run.optimizer.param_groups[0]["lr"].mul_(0.1)
    runs[0].step()
    replay()
    assert_same(values(runs[1].model), values(runs[0].model))


@pytest.mark.filterwarnings("ignore:a gradient or loss was infinite")
@pytest.mark.parametrize("what", ["losses", "gradients"])
@pytest.mark.parametrize("name", ["losses", "feedback", "squares"])
def test_a_replay_with_infinities_changes_nothing(graphs: Graphs, name: str, what: str) -> None:
    model = Towers().to(graphs.device)
    factor = torch.ones((), device=graphs.device)
    model.trunk[0].weight.register_hook(lambda gradient: gradient * factor)
    run = Run(model, weighted(model, WEIGHTINGS[name]()), lambda model, batch: model.losses(batch))
    run.eager(WARM)
    run.next_batch()
    replay = graphs.record(run.step)
    before = run.result()
    (run.batch if what == "losses" else factor).fill_(torch.inf)
    replay()
    after = run.result()
    assert_same(after[0], before[0])
    assert_same(without_host_counts(after[1]), without_host_counts(before[1]))
    assert after[2].tolist() == [1]


@pytest.mark.parametrize("name", ["squares", "rows, memory"])
def test_a_replay_with_a_loss_that_is_refused_changes_nothing_and_is_told_by_name(graphs: Graphs, name: str) -> None:
    model = Towers().to(graphs.device)
    added = torch.zeros((), device=graphs.device)

    def losses(model: nn.Module, batch: Tensor) -> list[Tensor]:
        first, *others = model.losses(batch)
        return [first + added, *others]

    run = Run(model, weighted(model, WEIGHTINGS[name]()), losses)
    run.eager(WARM)
    run.next_batch()
    replay = graphs.record(run.step)
    before = run.result()
    added.fill_(-100.0)
    for _ in range(10):
        replay()
    method = type(WEIGHTINGS[name]()).__name__
    with pytest.warns(UserWarning, match=f"^{method} needs .*; task 0 had -.*: 10 steps one after the other"):
        after = run.result()
    assert_same(after[0], before[0])
    assert_same(without_host_counts(after[1]), without_host_counts(before[1]))
    assert after[2].tolist() == [10]


def test_a_scaler_in_the_graph(graphs: Graphs) -> None:
    """Losses times 1024, gradients divided by it in the step: the same bits."""

    def make(scaled: bool) -> tuple[Run, torch.amp.GradScaler]:
        model = Towers().to(graphs.device)
        scaler = torch.amp.GradScaler(graphs.device.type, init_scale=1024.0, enabled=scaled)
        return Run(model, weighted(model, CAGrad()), lambda model, batch: model.losses(batch)), scaler

    results = []
    for scaled in (False, True):
        run, scaler = make(scaled)

        def step(run: Run = run, scaler: torch.amp.GradScaler = scaler) -> None:
            run.optimizer.backward(run.model.losses(run.batch[0]), scaler=scaler)
            scaler.step(run.optimizer)
            scaler.update()

        for _ in range(WARM):
            run.next_batch()
            step()
        run.next_batch()
        replay = graphs.record(step)
        run.next_batch()
        replay()
        results.append(values(run.model))
    torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-7)


# ------------------------------------------------------------------ what a graph cannot have
def refused(graphs: Graphs, step: Callable[[], Any], text: str) -> None:
    """(A real capture that fails is over: the driver has no more to say than that.)"""
    with pytest.raises(RuntimeError, match=text), graphs.capturing():
        step()


def test_the_first_step_is_refused(graphs: Graphs) -> None:
    run = of_mt2o(graphs, transfer=None)()
    before = values(run.model)
    refused(graphs, run.step, "the first step")
    assert_same(values(run.model), before)


def test_new_options_are_refused(graphs: Graphs) -> None:
    run = of_mt2o(graphs, transfer=None)()
    run.eager(WARM)
    run.optimizer.param_groups[0]["lr"] = 1e-3
    before = values(run.model)
    refused(graphs, run.step, "other options")
    assert_same(values(run.model), before)


def test_decaying_transfers_are_refused(graphs: Graphs) -> None:
    run = of_mt2o(graphs, transfer=Mean(LinearDecay(0.5, steps=100)))()
    run.eager(WARM)
    refused(graphs, run.step, "Mean with a strength that goes by the number of steps")


def test_connection_strength_is_refused(graphs: Graphs) -> None:
    parameter = parameters(4)[0].data.to(graphs.device).requires_grad_()
    with pytest.warns(UserWarning, match="no connections"):
        optimizer = ConnectionStrengthFused([parameter], connections=[], num_tasks=2, total_steps=10)
    refused(graphs, lambda: optimizer.step(lambda task: parameter.sum()), "draws phase")


def test_masks_of_tasks_are_refused(graphs: Graphs) -> None:
    parameter = parameters(4)[0].data.to(graphs.device).requires_grad_()
    optimizer = HarmonyFused([parameter], num_tasks=2)
    refused(graphs, lambda: optimizer.step(lambda task: parameter.sum()), "the host tells which task")
