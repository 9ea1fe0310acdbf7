"""The demo: its data, its network, and a small run from the command line to the files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import mt2o_ext.demo.__main__ as demo
from mt2o_ext import ParetoFront
from mt2o_ext.demo.__main__ import main
from mt2o_ext.demo.digits import load_digits, make_pairs, overlay, split_digits
from mt2o_ext.demo.lenet import LeNet, task_losses
from mt2o_ext.demo.report import Result, conclusion
from mt2o_ext.demo.search import MOST_RATES, best_rate, search_rates
from mt2o_ext.demo.training import REFERENCE, Arm, Run, evaluate, mini_batches

for package in ("matplotlib", "mlxtend", "moocore", "tqdm"):
    pytest.importorskip(package, reason=f"the demo needs {package}")

ARMS = (Arm("with transfer", lambda: None), Arm("independent runs", lambda: None))


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


def test_pairs_have_shapes_and_are_standardised_on_the_training_part() -> None:
    data = make_pairs((600, 50, 70), seed=1)
    for pairs, size in ((data.train, 600), (data.validation, 50), (data.test, 70)):
        images, labels = pairs.tensors
        assert images.shape == (size, 1, 36, 36)
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
        assert first.shape == (16, 1, 36, 36)
        assert first.equal(second)
        assert not first.equal(other)


def test_lenet_is_that_of_pareto_mtl() -> None:
    model = LeNet()
    assert sum(p.numel() for p in model.parameters()) == 31_910
    logits = model(torch.zeros(3, 1, 36, 36))
    assert logits.shape == (3, 2, 10)
    labels = torch.tensor([[1, 2], [3, 4], [5, 6]])
    expected = [torch.nn.functional.cross_entropy(logits[:, task], labels[:, task]) for task in range(2)]
    torch.testing.assert_close(task_losses(logits, labels), torch.stack(expected))


# Learning rates and steps to the target


def test_search_extends_the_grid_for_all_arms() -> None:
    best = {"with transfer": 8e-3, "independent runs": 2e-3}
    scores = search_rates(ARMS, lambda arm, lr: -abs(math.log(lr / best[arm.label])))
    assert [sorted(known) for known in scores] == 2 * [[1e-3, 2e-3, 4e-3, 8e-3, 16e-3]]
    assert [best_rate(known) for known in scores] == [8e-3, 2e-3]


@pytest.mark.parametrize(("sign", "edge"), [(1, 32e-3), (-1, 1.25e-4)])
def test_search_ends_where_there_is_no_best_rate(sign: int, edge: float) -> None:
    scores = search_rates(ARMS, lambda arm, lr: sign * lr)
    assert [len(known) for known in scores] == [MOST_RATES, MOST_RATES]
    assert best_rate(scores[0]) == edge


def test_steps_to_a_target() -> None:
    run = Run(ARMS[0], 1e-3, LeNet(), None, steps=[10, 20, 30], hypervolumes=[0.2, 0.6, 0.5])  # type: ignore[arg-type]
    assert [run.steps_to(target) for target in (0.0, 0.1, 0.2, 0.3, 0.6, 0.7)] == [None, 5.0, 10.0, 12.5, 20.0, None]


# What is told


def result(arm: Arm, corner: float, steps_to_target: float | None) -> Result:
    front = ParetoFront([[corner, corner]], [[0.5, 0.5]], REFERENCE)  # type: ignore[arg-type]
    run = Run(arm, 1e-3, LeNet(), None, steps=[100, 200], hypervolumes=[0.1, 0.2])  # type: ignore[arg-type]
    return Result(run, {1e-3: 0.2}, front, torch.full((1, 2), 0.5), steps_to_target)


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (
            (0.5, 100.0),
            (0.6, 150.0),
            ["transfer 0.2500 (56.2% more), independent runs 0.1600", "took them 150", "1.50"],
        ),
        ((0.6, 150.0), (0.5, 100.0), ["independent runs 0.2500 (56.2% more), with transfer 0.1600", "factor of 0.67"]),
        ((0.6, None), (0.5, 100.0), ["with transfer did not reach it in 200"]),
        ((0.5, 100.0), (0.5, 100.0), ["same hypervolume on test data, 0.2500", "factor of 1.00"]),
        ((0.5, 100.0), (1.5, None), ["independent runs 0.0000", "train longer"]),
    ],
)
def test_conclusion(ours: tuple[float, float | None], theirs: tuple[float, float | None], expected: list[str]) -> None:
    text = conclusion(result(ARMS[0], *ours), result(ARMS[1], *theirs), seed=3)
    assert "Seed 3 is one seed" in text
    for part in expected:
        assert part in text


# The whole


def run_demo(out: Path, *arguments: str) -> dict[str, Any]:
    """Twelve steps of four subproblems."""
    main(["--subproblems", "4", "--pairs", "48", "--epochs", "4", "--seed", "7", "--out", str(out), *arguments])
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
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
    assert str(REFERENCE) in printed
    for arm, name in zip(report["arms"], ("front_transfer.pt", "front_independent.pt"), strict=True):
        front = ParetoFront.load(out / name)
        assert front.losses.tolist() == arm["test_losses"]
        assert front.preferences.tolist() == arm["preferences"]
        assert arm["steps"][-1] == 12
        assert len(arm["validation_hypervolume"]) == len(arm["steps"])
        by_rate = arm["validation_hypervolume_by_learning_rate"]
        assert by_rate[f"{arm['learning_rate']:g}"] == max(by_rate.values())
        for k, (losses, accuracies) in enumerate(zip(arm["test_losses"], arm["test_accuracies"], strict=True)):
            numbers = [f"{x:.3f}" for x in (*arm["preferences"][k], *losses)] + [f"{x:.1%}" for x in accuracies]
            assert [str(k), *numbers] in [line.split() for line in printed.splitlines()]
    first, second = (arm["test_losses"] for arm in report["arms"])
    assert first != second
    assert (out / "front.png").read_bytes().startswith(b"\x89PNG")
    model = LeNet()
    model.load_state_dict(torch.load(out / "model.pt", weights_only=True))
    losses, _ = evaluate(model, make_pairs((48, 30, 40), seed=7).test)
    assert (ParetoFront.load(out / "front_transfer.pt").losses - losses).abs().amax(1).amin() < 1e-6, (
        "it is on the front"
    )


def test_without_transfer_both_arms_are_the_same(tmp_path: Path) -> None:
    first, second = run_demo(tmp_path, "--transfer", "none")["arms"]
    for key in ("validation_hypervolume_by_learning_rate", "validation_hypervolume", "test_losses", "test_accuracies"):
        assert first[key] == second[key]
