"""The benchmark of fronts: known optima, arms that start alike and spend alike, searches, and runs that go on."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bench.pareto.__main__ import main
from bench.pareto.arms import ARMS, CONTROL, Setting
from bench.pareto.arms.one_point import OnePoint
from bench.pareto.arms.subproblems import Subproblems
from bench.pareto.drive import drive
from bench.pareto.evaluation import hypervolumes, losses_of
from bench.pareto.layers import BatchNorm, FlatRows, Linear
from bench.pareto.plan import GRID, SEARCH_SEEDS, Plan, Series
from bench.pareto.problems import PROBLEMS
from bench.pareto.problems.base import Part, Problem, with_preferences
from bench.pareto.report import report
from bench.pareto.runs import Key, Record, checkpoints
from mt2o_ext.pareto import hypervolume
from mt2o_ext.transfer import register

pytestmark = pytest.mark.filterwarnings("ignore:grad and param do not obey")


# ------------------------------------------------------------------ problems whose best front is known
def on_the_best_set(name: str, t: Tensor) -> Tensor:
    """Decision vectors [K, n] of the Pareto set at t [K] in [0, 1]."""
    size = PROBLEMS[name].net(0).theta.shape[1]
    if name == "vlmop2":
        return ((2 * t - 1) / size**0.5)[:, None].expand(-1, size)
    others = 0.5 if name == "dtlz2" else 0.0
    return torch.cat([t[:, None], torch.full((len(t), size - 1), others, dtype=t.dtype)], 1)


def area(losses: Tensor, reference: tuple[float, ...]) -> Tensor:
    """The hypervolume of points of a front in two dimensions, differentiable."""
    losses = losses[losses[:, 0].argsort()]
    above = torch.cat([torch.tensor([reference[1]], dtype=losses.dtype), losses[:-1, 1]])
    return ((reference[0] - losses[:, 0]) * (above - losses[:, 1])).sum()


@pytest.mark.parametrize("name", [name for name, problem in PROBLEMS.items() if problem.optimum is not None])
def test_the_best_ten_points_have_the_optimum_that_is_written_down(name: str) -> None:
    problem = PROBLEMS[name]
    t = torch.linspace(0.05, 0.95, problem.rows, dtype=torch.float64).requires_grad_()
    optimizer = torch.optim.Adam([t], lr=3e-3)
    for _ in range(600):
        losses = problem.losses(on_the_best_set(name, t.clamp(1e-9, 1)), t, t)
        optimizer.zero_grad()
        (-area(losses, problem.main)).backward()
        optimizer.step()
    best = hypervolumes(problem, losses.detach())["main"]
    assert best == pytest.approx(area(losses, problem.main).item(), abs=1e-9)
    assert problem.optimum == pytest.approx(best, abs=3e-4)


@pytest.mark.parametrize("name", ["zdt1", "zdt2", "dtlz2", "vlmop2"])
def test_an_arm_comes_near_the_optimum_and_never_above(name: str) -> None:
    problem = PROBLEMS[name]
    arm = ARMS["vertices"].make(Setting(problem, 8e-3, 0, 500))
    for _ in range(500):
        arm.step()
    found = hypervolumes(problem, losses_of(problem, arm.fronts()[0], "test"))["main"]
    assert 0.92 * problem.optimum < found <= problem.optimum + 1e-4


# ------------------------------------------------------------------ arms, on a small problem of our own
class Small(nn.Module):
    def __init__(self, extra: int = 0, *, norm: bool = False) -> None:
        super().__init__()
        self.first, self.last = Linear(4 + extra, 6), Linear(6, 2)
        self.norm = BatchNorm(6) if norm else nn.Identity()

    def forward(self, x: Tensor, w: Tensor | None = None) -> Tensor:
        return self.last(self.norm(self.first(with_preferences(x, w))).tanh())


def small_parts() -> dict[str, Part]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(600, 4, generator=generator)
    y = torch.stack([x.sum(1), x[:, 0] - x[:, 1]], 1)
    return {"train": (x[:400], y[:400]), "validation": (x[400:500], y[400:500]), "test": (x[500:], y[500:])}


SMALL = Problem(
    name="small",
    title="",
    tasks=("sum", "difference"),
    rows=10,
    batch=8,
    steps=12,
    main=(4.0, 4.0),
    tight=(2.0, 2.0),
    parts=small_parts,
    net=Small,
    losses=lambda outputs, x, y: (outputs - y).square().mean(1),
)


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_spends_the_budget_and_starts_where_the_others_start(name: str) -> None:
    setting = Setting(SMALL, 1e-2, 5, SMALL.steps)
    arm = ARMS[name].make(setting)
    if not ARMS[name].needs_inputs:
        torch.manual_seed(5)
        start = FlatRows(SMALL.net(0), 1).values
        for front in arm.fronts():
            torch.testing.assert_close(front.rows, start.expand(SMALL.rows, -1))
    before = losses_of(SMALL, arm.fronts()[0], "validation")
    while arm.spent < setting.budget:
        spent, steps = arm.spent, arm.steps
        arm.step()
        assert arm.steps == steps + 1 and spent < arm.spent <= spent + 2 * SMALL.rows
    assert arm.spent < setting.budget + 2 * SMALL.rows
    after = losses_of(SMALL, arm.fronts()[-1], "validation")
    assert after.isfinite().all() and after.shape == (10, 2)
    assert after.sum() < before.sum()


def test_every_transfer_rule_of_the_package_has_an_arm() -> None:
    shown = set()
    for entry in ARMS.values():
        arm = entry.make(Setting(SMALL, 1e-2, 0, 4))
        if isinstance(arm, Subproblems):
            shown |= {name for name, rule in register.items() if f"transfer={rule.__name__}," in repr(arm.optimizer)}
    assert shown == set(register)


def test_the_vertices_of_one_point_get_the_gradient_that_autograd_gives() -> None:
    setting = Setting(SMALL, 1e-2, 2, 4)
    arm, twin = (OnePoint(setting) for _ in range(2))
    arm.step()
    w = twin.draw().float()
    x, y = twin.batches(1)
    start = twin.vertices.detach().clone().requires_grad_()
    names, sizes = zip(*((name, p[0].numel()) for name, p in twin.template.named_parameters()), strict=True)
    parts = zip(names, (w @ start).split(sizes, 1), twin.template.parameters(), strict=True)
    rows = {name: part.view(1, *parameter.shape[1:]) for name, part, parameter in parts}
    (w * SMALL.losses(torch.func.functional_call(twin.template, rows, (x,)), x, y)).sum().backward()
    torch.testing.assert_close(arm.vertices.grad, start.grad)


def test_batch_norm_is_evaluated_with_statistics_of_the_weights_that_are_evaluated() -> None:
    problem = replace(SMALL, name="small with norm", net=partial(Small, norm=True), calibrates=True)
    arm = ARMS[CONTROL].make(Setting(problem, 1e-1, 0, 6))
    for _ in range(6):
        arm.step()
    front = arm.fronts()[0]
    found = losses_of(problem, front, "test")
    x, y = problem.data["test"]
    train = problem.data["train"][0]
    for k in range(problem.rows):  # by hand, with torch's own function
        first, bias, scale, shift, last, offset = front.rows[k].split([24, 6, 6, 6, 12, 2])
        names = [name for name, _ in problem.net(0).named_parameters()]
        assert names == ["first.weight", "first.bias", "last.weight", "last.bias", "norm.weight", "norm.bias"]
        first, bias, last, offset, scale, shift = front.rows[k].split([24, 6, 12, 2, 6, 6])
        hidden = [nn.functional.linear(part, first.view(6, 4), bias) for part in (train, x)]
        mean, variance = hidden[0].mean(0), hidden[0].var(0, correction=0)
        normed = nn.functional.batch_norm(hidden[1], mean, variance, scale, shift)
        out = nn.functional.linear(normed.tanh(), last.view(2, 6), offset)
        torch.testing.assert_close(found[k].float(), (out - y).square().mean(0))


def test_shared_batches_are_the_same_for_all_and_own_ones_are_not() -> None:
    for shared in (True, False):
        batches = ARMS[CONTROL].make(Setting(SMALL, 1e-2, 0, 4, shared=shared)).batches
        x, _ = batches(3)
        assert x.shape == (3, 8, 4)
        assert bool((x[0] == x[1]).all()) == shared


def test_the_cosine_falls_from_the_rate_to_nothing() -> None:
    arm = ARMS["branch25"].make(Setting(SMALL, 1e-2, 0, 4, cosine=True))
    rates = []
    while arm.spent < 40:
        rates.append(arm.rate)
        arm.step()
    assert rates[0] == 1e-2 and rates == sorted(rates, reverse=True) and arm.rate == 0


# ------------------------------------------------------------------ searches and plans
def record(key: Key, score: float) -> Record:
    curve = {name: [score / 2, score] for name in ("main", "tight", "inner")}
    final = dict.fromkeys(curve, score)
    return Record(key, [10, 20], [1, 2], curve, final, [[0.5, 0.5]] * 10, 0, 1.0)


def searched(series: Series, score: dict[float, float]) -> tuple[list[float], float | None]:
    """The rates that were tried, and the best."""
    records: dict[Key, Record] = {}
    for _ in range(20):
        for lr, found in series.scores(records).items():
            if found is None:
                for seed in SEARCH_SEEDS:
                    key = series.key(lr, seed)
                    records[key] = record(key, score[lr])
    return sorted(series.scores(records)), series.rate(records)


def test_the_grid_grows_while_its_edge_is_best() -> None:
    series = Series("zdt1", "ind", 10)
    rates = [0.5e-3, 1e-3, 2e-3, 4e-3, 8e-3, 16e-3, 32e-3]
    flat = dict.fromkeys(rates, 0.1)
    assert searched(series, {**flat, 4e-3: 0.5}) == ([2e-3, 4e-3, 8e-3], 4e-3)
    assert searched(series, {**flat, 8e-3: 0.5, 16e-3: 0.6}) == ([2e-3, 4e-3, 8e-3, 16e-3, 32e-3], 16e-3)
    assert searched(series, {**flat, 2e-3: 0.5, 1e-3: 0.4}) == ([1e-3, 2e-3, 4e-3, 8e-3], 2e-3)
    assert series.rate({}) is None


def test_seeds_wait_for_the_search_and_important_arms_come_first() -> None:
    plan = Plan(("zdt1", "zdt2"), ("epo", "vertices", "ind"), 7, {"zdt1": 10, "zdt2": 10})
    records: dict[Key, Record] = {}
    first = plan.runnable(records)
    assert {key.seed for key in first} == set(SEARCH_SEEDS)
    assert [key.problem for key in first[:12]] == ["zdt1"] * 12
    assert {key.arm for key in first[:24]} == {"vertices", "ind"}
    order: list[Key] = []
    while missing := plan.runnable(records):
        assert sum(plan.missing(records).values()) >= len(missing)
        order.append(missing[0])
        records[missing[0]] = record(missing[0], {4e-3: 1.0}.get(missing[0].lr, 0.5))
    assert len(order) == len(set(order)) == 2 * 3 * (2 * len(GRID) + 7)
    early = [key.seed < 5 or key.seed in SEARCH_SEEDS for key in order]
    assert early == sorted(early, reverse=True)
    assert sum(plan.missing(records).values()) == 0


def test_checkpoints_end_with_the_budget() -> None:
    marks = checkpoints(15_000)
    assert len(marks) == 20 and marks[0] == 500 and marks[-1] == 15_000 and marks == sorted(set(marks))


# ------------------------------------------------------------------ runs that are stopped and go on
def results(folder: Path) -> dict[str, list[dict[str, object]]]:
    """All that was written, but for the seconds."""
    files = {path.name: path.read_text().splitlines() for path in sorted(folder.glob("*.jsonl"))}
    return {name: [{**json.loads(line), "seconds": 0} for line in lines] for name, lines in files.items()}


def test_a_run_that_was_stopped_goes_on_to_the_same_records(tmp_path: Path) -> None:
    plan = Plan(("dtlz2",), ("ind", "vertices"), 3, {"dtlz2": 20})
    whole = drive(plan, tmp_path / "whole", 0)
    calls = count()
    drive(plan, tmp_path / "parts", 0, lambda: next(calls) >= 5)
    kept = (tmp_path / "parts" / "dtlz2.jsonl").read_text().splitlines()
    assert 0 < len(kept) < len(whole.by_key)
    drive(plan, tmp_path / "parts", 0)
    assert results(tmp_path / "parts") == results(tmp_path / "whole")
    assert set(kept) <= set((tmp_path / "parts" / "dtlz2.jsonl").read_text().splitlines())
    for found in whole.by_key.values():
        assert hypervolume(found.front, PROBLEMS["dtlz2"].main) == pytest.approx(found.test["main"], rel=1e-3)
        assert Record.of(found.line()) == found
    report(tmp_path / "whole")
    page = (tmp_path / "whole" / "README.md").read_text()
    assert "## dtlz2" in page and "| vertices |" in page
    assert {path.name for path in (tmp_path / "whole").glob("*.png")} == {"forest.png", "clocks.png", "front.png"}


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "dtlz2.jsonl").write_text('{"key":\n')
    with pytest.raises(ValueError, match=r"line 1 of .*dtlz2.jsonl"):
        drive(Plan(("dtlz2",), ("ind",), 1), tmp_path, 0)


def test_missing_data_is_told_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing() -> dict[str, Part]:
        raise FileNotFoundError("no garments: `make pareto-data`")

    monkeypatch.setitem(PROBLEMS, "mf", replace(PROBLEMS["mf"], parts=nothing))
    with pytest.raises(SystemExit, match=r"mf: no garments.*--problems zdt1"):
        main(["run", "--problems", "zdt1,mf", "--workers", "0"], tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(SystemExit, match="expected records in"):
        main(["report"], tmp_path)


@pytest.mark.parametrize("words", [["--arms", "ind,nothing"], ["--problems", "mnist"], ["--options", "batch5"]])
def test_unknown_names_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", *words])
    assert words[1].split(",")[-1] in capsys.readouterr().err
