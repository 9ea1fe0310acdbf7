"""Metrics beside the losses of a ParetoFront: in tables, files and the notes of a plot; never in the choice."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from mt2o_ext.pareto import ParetoFront
from mt2o_ext.preferences import even

LOSSES = [[0.0, 1.0], [0.4, 0.4], [1.0, 0.0]]
METRICS = {"accuracy": [0.5, 0.75, 0.25], "gap": [0.125, math.nan, 2.0]}


def front(metrics: Any = METRICS) -> ParetoFront:
    return ParetoFront(LOSSES, even(3), task_names=("a", "b"), metrics=metrics)


def same(left: ParetoFront, right: ParetoFront) -> bool:
    return list(left.metrics) == list(right.metrics) and all(
        torch.equal(left.metrics[name].nan_to_num(9.0), right.metrics[name].nan_to_num(9.0)) for name in left.metrics
    )


def test_columns_rows_and_frames_are_one_and_the_same() -> None:
    pandas = pytest.importorskip("pandas", reason="data frames need pandas")
    rows = [{"accuracy": torch.tensor(METRICS["accuracy"][k]), "gap": METRICS["gap"][k]} for k in range(3)]
    frame = pandas.DataFrame(METRICS, index=["x", "y", "z"])
    for given in (rows, frame, {name: torch.tensor(column) for name, column in METRICS.items()}):
        assert same(front(given), front())
    assert front().metrics["accuracy"].dtype == torch.float64
    assert front([]).metrics == front({}).metrics == {}


def test_metrics_are_a_snapshot() -> None:
    accuracy = torch.tensor([0.5, 0.75, 0.25], requires_grad=True)
    given = {"accuracy": accuracy}
    kept = front(given)
    with torch.no_grad():
        accuracy.zero_()
    given["more"] = accuracy
    assert kept.metrics["accuracy"].tolist() == [0.5, 0.75, 0.25] and list(kept.metrics) == ["accuracy"]
    assert not kept.metrics["accuracy"].requires_grad


def test_metrics_decide_nothing() -> None:
    plain, other = front({}), front()
    assert torch.equal(plain.non_dominated, other.non_dominated)
    assert [plain.choose(p) for p in even(9)] == [other.choose(p) for p in even(9)]


def test_metrics_are_in_the_tables() -> None:
    pytest.importorskip("pandas", reason="to_frame needs pandas")
    frame = front().to_frame()
    assert list(frame.columns)[-3:] == ["metric_accuracy", "metric_gap", "non_dominated"]
    assert frame["metric_accuracy"].tolist() == METRICS["accuracy"]
    assert str(front()).splitlines()[1:3] == [
        "    w(a)   w(b)    a    b  accuracy    gap",
        "0  1.000  0.000    0    1       0.5  0.125  *",
    ]


def test_metrics_are_saved(tmp_path: Path) -> None:
    front().save(tmp_path / "front.pt")
    assert same(ParetoFront.load(tmp_path / "front.pt"), front())


@pytest.mark.parametrize(
    ("metrics", "error", "message"),
    [
        ({"accuracy": [1.0, 2.0]}, ValueError, r"the metric 'accuracy' of shape \(3,\), got \(2,\)"),
        ({"accuracy": "high"}, TypeError, "expected the metric 'accuracy' as a tensor"),
        ({0: [1.0, 2.0, 3.0]}, TypeError, "names of metrics as strings, got 0"),
        ([{"a": 1.0}, {"a": 2.0}], ValueError, "expected metrics of 3 subproblems, got 2 rows"),
        ([{"a": 1.0}, {"a": 2.0}, {"b": 2.0}], ValueError, r"the metrics \['a'\] of every.* \['b'\] for subproblem 2"),
        (torch.ones(3, 2), TypeError, "as a mapping from names to .* got Tensor: name them"),
        ([1.0, 2.0, 3.0], TypeError, "as a mapping from names to"),
    ],
)
def test_metrics_that_do_not_fit(metrics: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        front(metrics)


# ---------------------------------------------------------------------- the note under the mouse
def notes(ax: Any, place: tuple[float, ...] | None) -> list[str]:
    """The texts that are seen while the mouse is at a place in data coordinates; None: in the corner of the figure."""
    from matplotlib.backend_bases import MouseEvent
    from mpl_toolkits.mplot3d.proj3d import proj_transform

    canvas = ax.figure.canvas
    canvas.draw()
    x, y = 1.0, 1.0
    if place is not None:
        x, y = ax.transData.transform(place if len(place) == 2 else proj_transform(*place, ax.get_proj())[:2])
    canvas.callbacks.process("motion_notify_event", MouseEvent("motion_notify_event", canvas, x, y))
    return [text.get_text() for text in ax.texts if text.get_visible() and text.get_text().startswith("subproblem")]


@pytest.fixture
def figure() -> Any:
    matplotlib = pytest.importorskip("matplotlib", reason="the plots need matplotlib")
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    return Figure()


def test_the_note_of_a_point_in_the_plane(figure: Any) -> None:
    ax = front().plot(figure.add_subplot())
    assert notes(ax, None) == []
    told = "subproblem 1\npreference 0.5, 0.5\nloss of a 0.4\nloss of b 0.4\naccuracy 0.75\ngap nan"
    assert notes(ax, (0.4, 0.4)) == [told]
    assert notes(ax, (0.7, 0.7)) == [], "the mouse has left the point"
    assert notes(ax, (1.0, 0.0))[0].startswith("subproblem 2\n")


@pytest.mark.parametrize("num_tasks", [3, 5])
def test_the_note_of_a_point_of_more_tasks(figure: Any, num_tasks: int) -> None:
    losses = torch.eye(num_tasks)
    kept = ParetoFront(losses, torch.eye(num_tasks), metrics={"accuracy": torch.arange(num_tasks)})
    ax = kept.plot(figure.add_subplot(projection="3d" if num_tasks == 3 else None))
    place = (0.0, 0.0, 1.0) if num_tasks == 3 else (2.0, 1.0)
    assert [text.splitlines()[0] for text in notes(ax, place)] == ["subproblem 2"]
    assert "accuracy 2" in notes(ax, place)[0]
