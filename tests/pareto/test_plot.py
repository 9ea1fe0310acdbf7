"""What the plots of a ParetoFront contain."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from mt2o_ext.pareto import ParetoFront
from mt2o_ext.preferences import das_dennis, even

matplotlib = pytest.importorskip("matplotlib", reason="the plots need matplotlib")
matplotlib.use("Agg")


def convex(num_subproblems: int, reference: list[float] | None = None) -> ParetoFront:
    """Points of the convex front (t^2, (1 - t)^2), in the order of their preferences."""
    t = torch.linspace(0.0, 1.0, num_subproblems, dtype=torch.float64)
    return ParetoFront(torch.stack([t**2, (1.0 - t) ** 2], 1), even(num_subproblems), reference)


@pytest.fixture
def pyplot() -> Iterator[ModuleType]:
    import matplotlib.pyplot as plt

    yield plt
    plt.close("all")


def with_dominated(num_tasks: int) -> ParetoFront:
    """Rows that each favour one task or two, one dominated row, and one diverged row."""
    preferences = das_dennis(num_tasks, 2)
    losses = 1.0 - preferences.sqrt()
    losses[0] += 2.0
    losses[1] = math.nan
    return ParetoFront(losses, preferences, reference=[1.5] * num_tasks, task_names=list("abcdef")[:num_tasks])


def test_plot_of_two_tasks(pyplot: ModuleType) -> None:
    t = torch.linspace(0.0, 1.0, 5, dtype=torch.float64)
    losses = torch.stack([t**2, (1.0 - t) ** 2], 1)[[4, 1, 0, 2, 3]]
    losses[3] += 1.0
    front = ParetoFront(losses, even(5), reference=[100.0, 100.0], task_names=("a", "b"))
    ax = front.plot()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("loss of a", "loss of b")
    hollow, filled = ax.collections
    assert hollow.get_offsets().tolist() == [losses[3].tolist()]
    assert len(hollow.get_facecolors()) == 0
    assert filled.get_offsets().tolist() == losses[[0, 1, 2, 4]].tolist()
    assert filled.get_array().tolist() == even(5)[[0, 1, 2, 4], 0].tolist(), "the colour is the preference"
    (staircase,) = ax.lines
    assert staircase.get_xdata().tolist() == sorted(losses[[0, 1, 2, 4], 0].tolist())
    assert staircase.get_drawstyle() == "steps-post"
    (shade,) = ax.patches
    assert shade.get_xy().max() == 100.0
    assert ax.get_xlim()[1] < 2.0, "a far reference must not shrink the front"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["non-dominated", "dominated"]
    ax.figure.canvas.draw()


def test_shade_is_the_hypervolume(pyplot: ModuleType) -> None:
    front = convex(6, reference=[0.8, 0.9])
    corners = front.plot().patches[0].get_xy()
    x, y = corners[:, 0], corners[:, 1]
    area = abs((x[:-1] * y[1:] - x[1:] * y[:-1]).sum()) / 2.0
    pytest.importorskip("moocore", reason="the hypervolume needs moocore")
    assert area == pytest.approx(front.hypervolume())


def test_plot_of_three_tasks(pyplot: ModuleType) -> None:
    front = with_dominated(3)
    ax = front.plot()
    assert ax.name == "3d"
    assert ax.get_zlabel() == "loss of c"
    filled, hollow = ax.collections
    on_front = front.non_dominated
    x, y, z = filled._offsets3d
    assert sorted(zip(x.tolist(), y.tolist(), z.tolist(), strict=True)) == sorted(
        map(tuple, front.losses[on_front].tolist())
    )
    assert len(hollow._offsets3d[0]) == 1
    assert len(ax.lines) == 5, "a stem for each row that has not diverged"
    ax.figure.canvas.draw()


def test_plot_of_five_tasks(pyplot: ModuleType) -> None:
    front = with_dominated(5)
    ax = front.plot()
    lines = [line for line in ax.lines if len(line.get_xdata()) == 5]
    dotted = [line for line in lines if line.get_linestyle() == ":"]
    assert (len(lines), len(dotted)) == (14, 1)
    heights = torch.stack([torch.as_tensor(line.get_ydata()) for line in lines])
    assert heights.amin(0).tolist() == [0.0] * 5
    assert heights.amax(0).tolist() == [1.0] * 5
    assert [label.get_text() for label in ax.get_xticklabels()] == list("abcde")
    assert (
        len({line.get_color() if isinstance(line.get_color(), str) else tuple(line.get_color()) for line in lines})
        == 14
    )
    ax.figure.canvas.draw()


def test_plot_of_some_tasks(pyplot: ModuleType) -> None:
    ax = with_dominated(5).plot(tasks=["d", 0])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("loss of d", "loss of a")
    assert len(ax.lines) == 0, "two of five tasks have no staircase"
    assert with_dominated(5).plot(tasks=[0, 1, 4]).name == "3d"


def test_plot_on_given_axes_leaves_pyplot_alone(pyplot: ModuleType) -> None:
    from matplotlib.figure import Figure

    figure = Figure()
    plane, space = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2, projection="3d")
    assert convex(4).plot(ax=plane) is plane
    assert with_dominated(3).plot(space) is space
    assert pyplot.get_fignums() == []
    with pytest.raises(ValueError, match=r"expected a 3-D axes.* for 3 tasks"):
        with_dominated(3).plot(plane)
    with pytest.raises(ValueError, match=r"expected a plane axes for 2 tasks, got ax.name = '3d'"):
        convex(4).plot(space)


def test_plot_rejects(pyplot: ModuleType) -> None:
    for tasks in (["z", "a"], [0, 5], [-1, 0]):
        with pytest.raises(ValueError, match="expected tasks of this front"):
            with_dominated(3).plot(tasks=tasks)
    for tasks in ([0], [0, "a"], []):
        with pytest.raises(ValueError, match="at least two different tasks"):
            with_dominated(3).plot(tasks=tasks)
    with pytest.raises(ValueError, match="at least two different tasks"):
        ParetoFront(torch.ones(2, 1), torch.ones(2, 1)).plot()
    with pytest.raises(ValueError, match="nothing to draw"):
        ParetoFront(torch.full((2, 2), math.nan), even(2)).plot()
    assert pyplot.get_fignums() == [], "a refused plot leaves an empty figure"


def test_plot_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"plot needs matplotlib: pip install \"mt2o_ext\[pareto\]\""):
        convex(3).plot()
