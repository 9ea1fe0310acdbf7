"""ParetoFront: hypervolumes known by hand, dominance, choice, files and tables."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mt2o_ext.pareto import ParetoFront, hypervolume
from mt2o_ext.preferences import even

pytest.importorskip("moocore", reason="the hypervolume needs moocore")


def uniform(num_subproblems: int, num_tasks: int) -> Tensor:
    return torch.full((num_subproblems, num_tasks), 1.0 / num_tasks, dtype=torch.float64)


def convex(num_subproblems: int, **options: object) -> ParetoFront:
    """Points of the convex front (t^2, (1 - t)^2), in the order of their preferences."""
    t = torch.linspace(0.0, 1.0, num_subproblems, dtype=torch.float64)
    return ParetoFront(torch.stack([t**2, (1.0 - t) ** 2], 1), even(num_subproblems), **options)


# Hypervolume


@pytest.mark.parametrize(
    ("losses", "reference", "expected"),
    [
        ([[0.25, 0.5]], [1.0, 1.0], 0.375),
        ([[0.2, 0.8], [0.5, 0.5], [0.8, 0.2]], [1.0, 1.0], 0.8 * 0.2 + 0.5 * 0.3 + 0.2 * 0.3),
        ([[0.5, 0.5], [0.5, 0.5], [0.75, 0.75]], [1.0, 1.0], 0.25),  # duplicates and dominated rows
        ([[0.5, 0.5], [0.1, 1.0], [2.0, 0.1]], [1.0, 1.0], 0.25),  # on the edge and beyond the reference
        ([[0.5, 0.5], [math.inf, 0.1]], [1.0, 1.0], 0.25),
        ([[1.0, 1.0]], [1.0, 1.0], 0.0),
        ([[0.5, 0.5, 0.5], [0.0, 0.9, 0.9]], [1.0, 1.0, 1.0], 0.125 + 0.01 * 0.5),
        ([[0.0] * 5], [2.0] * 5, 32.0),
        ([[0.7], [0.3]], [1.0], 0.7),  # one task: reference - minimum
        ([[1.5]], [1.0], 0.0),
    ],
)
def test_hypervolume_by_hand(losses: list[list[float]], reference: list[float], expected: float) -> None:
    assert hypervolume(losses, reference) == pytest.approx(expected, rel=1e-14)
    assert hypervolume(torch.tensor(losses, requires_grad=True), torch.tensor(reference)) == pytest.approx(expected)


def test_hypervolume_of_the_extremes_of_vlmop2() -> None:
    """The two ends of VLMOP2's front are (0, c) and (c, 0) with c = 1 - exp(-4); the reference is (1, 1)."""
    end = 1.0 - math.exp(-4.0)
    assert hypervolume([[0.0, end], [end, 0.0]], [1.0, 1.0]) == pytest.approx(0.0363, abs=5e-5)


@pytest.mark.parametrize(("num_points", "expected"), [(100, 0.8767), (1000, 0.8767)])
def test_hypervolume_of_zdt1(num_points: int, expected: float) -> None:
    """f2 = 1 - sqrt(f1), reference (1.1, 1.1): 1.21 - 1/3 = 0.8767 in the limit of many points."""
    f1 = torch.linspace(0.0, 1.0, num_points, dtype=torch.float64) ** 2
    found = hypervolume(torch.stack([f1, 1.0 - f1.sqrt()], 1), [1.1, 1.1])
    assert expected - 2.0 / num_points < found < 1.21 - 1.0 / 3.0


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31), num_tasks=st.integers(2, 4))
def test_hypervolume_laws(seed: int, num_tasks: int) -> None:
    losses = torch.rand(8, num_tasks, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    reference = torch.full((num_tasks,), 0.9, dtype=torch.float64)
    volume = hypervolume(losses, reference)
    assert hypervolume(losses.flip(0), reference) == pytest.approx(volume, abs=1e-14)
    assert hypervolume(losses[:4], reference) <= volume + 1e-14
    units = torch.arange(1, num_tasks + 1) * 10.0
    assert hypervolume(losses * units, reference * units) == pytest.approx(volume * units.prod().item(), abs=1e-9)
    front = ParetoFront(losses, uniform(8, num_tasks), reference)
    assert hypervolume(losses[front.non_dominated], reference) == pytest.approx(volume, abs=1e-14)


def test_hypervolume_rejects() -> None:
    with pytest.raises(ValueError, match=r"without NaN and -infinity, got them in rows \[0, 2\]"):
        hypervolume([[math.nan, 1.0], [0.0, 0.0], [0.0, -math.inf]], [1.0, 1.0])
    with pytest.raises(ValueError, match=r"expected losses of shape \[K, T\]"):
        hypervolume([0.5, 0.5], [1.0, 1.0])
    with pytest.raises(ValueError, match=r"expected a reference of shape \(2,\)"):
        hypervolume([[0.5, 0.5]], [1.0])
    with pytest.raises(ValueError, match="expected a finite reference"):
        hypervolume([[0.5, 0.5]], [1.0, math.inf])
    with pytest.raises(TypeError, match="expected losses as a tensor or"):
        hypervolume("losses", [1.0])


def test_hypervolume_of_a_front_needs_a_reference() -> None:
    front = convex(5)
    with pytest.raises(ValueError, match=r"hypervolume\(reference\) or ParetoFront\(reference=\.\.\.\)"):
        front.hypervolume()
    own = convex(5, reference=[1.0, 1.0])
    assert own.hypervolume() == front.hypervolume([1.0, 1.0]) == hypervolume(front.losses, [1.0, 1.0])
    assert own.hypervolume([2.0, 2.0]) > own.hypervolume(), "the argument comes before the front's own"


@pytest.mark.parametrize(("module", "call"), [("moocore", "hypervolume"), ("pandas", "to_frame")])
def test_missing_extra(monkeypatch: pytest.MonkeyPatch, module: str, call: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"{call} needs {module}: pip install \"mt2o_ext\[pareto\]\""):
        getattr(convex(3, reference=[2.0, 2.0]), call)()


# The front


def test_non_dominated() -> None:
    finite = [[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.5], [0.5, 0.5]]
    losses = [*finite, [math.nan, 0.0], [-1.0, math.inf], [-math.inf, -1.0]]  # diverged rows dominate nothing
    front = ParetoFront(losses, uniform(8, 2))
    assert front.non_dominated.tolist() == [True, True, True, False, True, False, False, False]
    assert front.ideal.tolist() == [0.0, 0.0]
    assert front.nadir.tolist() == [1.0, 1.0]


def test_nadir_ignores_dominated_rows() -> None:
    front = ParetoFront(torch.tensor([[0.0, 1.0], [1.0, 0.0], [9.0, 9.0]]), uniform(3, 2))
    assert front.nadir.tolist() == [1.0, 1.0]


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**31), num_tasks=st.integers(1, 4))
def test_non_dominated_is_the_definition(seed: int, num_tasks: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    losses = torch.randint(0, 4, (9, num_tasks), generator=generator).double()
    found = ParetoFront(losses, uniform(9, num_tasks)).non_dominated
    rows = losses.tolist()
    for k, row in enumerate(rows):
        dominated = any(other != row and all(a <= b for a, b in zip(other, row, strict=True)) for other in rows)
        assert found[k].item() is not dominated


def test_front_is_a_snapshot() -> None:
    losses, preferences, reference = torch.rand(3, 2, requires_grad=True), even(3), torch.ones(2)
    front = ParetoFront(losses, preferences, reference)
    before = front.losses.clone(), front.preferences.clone(), front.reference.clone()
    with torch.no_grad():
        losses.zero_(), preferences.zero_(), reference.zero_()
    for now, then in zip((front.losses, front.preferences, front.reference), before, strict=True):
        assert torch.equal(now, then)
        assert now.dtype == torch.float64
        assert not now.requires_grad
    with pytest.raises(AttributeError):
        front.losses = losses
    assert (front.num_subproblems, front.num_tasks, len(front)) == (3, 2, 3)


@pytest.mark.parametrize(
    ("losses", "preferences", "options", "error", "message"),
    [
        (torch.ones(2), even(2), {}, ValueError, r"expected losses of shape \[K, T\]"),
        (torch.ones(0, 2), even(2), {}, ValueError, "at least one row"),
        (torch.ones(3, 2), even(2), {}, ValueError, r"shape \(3, 2\), got \(2, 2\)"),
        (torch.ones(2, 2), even(2) * 2.0, {}, ValueError, "sum to 1"),
        ("losses", even(2), {}, TypeError, "expected losses as a tensor"),
        (torch.ones(2, 2), even(2), {"reference": [1.0]}, ValueError, r"expected a reference of shape \(2,\)"),
        (torch.ones(2, 2), even(2), {"task_names": ("a",)}, ValueError, "expected 2 different task_names"),
        (torch.ones(2, 2), even(2), {"task_names": ("a", "a")}, ValueError, "expected 2 different task_names"),
        (torch.ones(2, 2), even(2), {"task_names": "ab"}, TypeError, "sequence of strings"),
        (torch.ones(2, 2), even(2), {"task_names": (0, 1)}, TypeError, "sequence of strings"),
    ],
)
def test_front_rejects(
    losses: Tensor, preferences: Tensor, options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ParetoFront(losses, preferences, **options)


# Choice


def test_choose_by_hand() -> None:
    front = convex(5, reference=[1.0, 1.0])
    assert [front.choose(even(5)[k]) for k in (0, 2, 4)] == [0, 2, 4]
    assert front.choose([0.5, 0.5]) == front.choose([7.0, 7.0]) == 2, "only the ratios count"
    dominated = ParetoFront(torch.tensor([[0.6, 0.6], [0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]), uniform(4, 2))
    assert dominated.choose([0.5, 0.5]) == 2


def test_choose_does_not_depend_on_units() -> None:
    front = convex(11)
    in_other_units = ParetoFront(front.losses * torch.tensor([1e-6, 1e6]) + torch.tensor([5.0, 0.0]), even(11))
    for preference in even(21):
        assert in_other_units.choose(preference) == front.choose(preference)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**31), discrete=st.booleans())
def test_choose_is_monotone_in_the_preference(seed: int, discrete: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    losses = torch.rand(12, 2, dtype=torch.float64, generator=generator)
    losses = (losses * 6.0).round() if discrete else losses
    front = ParetoFront(losses, uniform(12, 2))
    chosen = [front.choose(preference) for preference in even(33)]
    assert all(front.non_dominated[k] for k in chosen)
    assert (front.losses[chosen, 0].diff() >= 0.0).all()
    assert (front.losses[chosen, 1].diff() <= 0.0).all()
    assert front.losses[chosen[0], 0] == front.ideal[0]
    assert front.losses[chosen[-1], 1] == front.ideal[1]


def test_choose_breaks_ties_by_the_other_tasks() -> None:
    losses = torch.tensor([[0.0, 1.0, 0.2], [0.0, 0.2, 1.0], [0.0, 0.3, 0.3], [1.0, 0.0, 0.0]])
    assert ParetoFront(losses, uniform(4, 3)).choose([1.0, 0.0, 0.0]) == 2


def test_choose_from_degenerate_fronts() -> None:
    assert ParetoFront(torch.ones(3, 2), even(3)).choose([0.2, 0.8]) == 0
    assert ParetoFront(torch.tensor([[3.0], [1.0], [2.0]]), torch.ones(3, 1)).choose([1.0]) == 1
    constant = ParetoFront(torch.tensor([[0.0, 1.0, 5.0], [1.0, 0.0, 5.0]]), uniform(2, 3))
    assert constant.choose([0.1, 0.2, 0.7]) == 1
    diverged = ParetoFront(torch.tensor([[math.nan, 1.0], [1.0, 2.0]]), even(2))
    assert diverged.choose([1.0, 0.0]) == 1
    with pytest.raises(ValueError, match="every run has diverged"):
        ParetoFront(torch.full((2, 2), math.nan), even(2)).choose([0.5, 0.5])


@pytest.mark.parametrize("preference", [[0.5], [0.0, 0.0], [-1.0, 2.0], [math.nan, 1.0]])
def test_choose_rejects(preference: list[float]) -> None:
    with pytest.raises(ValueError, match="expected a preference"):
        convex(3).choose(preference)


# Files and tables


@pytest.mark.parametrize("reference", [None, [1.0, 2.0]])
def test_save_and_load(tmp_path: Path, reference: list[float] | None) -> None:
    front = convex(7, reference=reference, task_names=("left", "right"))
    front.save(tmp_path / "front.pt")
    loaded = ParetoFront.load(tmp_path / "front.pt")
    assert torch.equal(loaded.losses, front.losses)
    assert torch.equal(loaded.preferences, front.preferences)
    assert loaded.task_names == ("left", "right")
    assert (loaded.reference is None) if reference is None else (loaded.reference.tolist() == reference)


def test_load_rejects_other_files(tmp_path: Path) -> None:
    torch.save({"losses": torch.ones(2, 2)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt, which was not written by ParetoFront\.save"):
        ParetoFront.load(tmp_path / "other.pt")


def test_to_frame() -> None:
    pytest.importorskip("pandas", reason="to_frame needs pandas")
    front = ParetoFront(torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]), even(3), task_names=("a", "b"))
    frame = front.to_frame()
    assert list(frame.columns) == ["preference_a", "preference_b", "loss_a", "loss_b", "non_dominated"]
    assert frame["loss_b"].tolist() == [1.0, 0.0, 1.0]
    assert frame["preference_a"].tolist() == [1.0, 0.5, 0.0]
    assert frame["non_dominated"].tolist() == [True, True, False]
    frame.loc[0, "loss_a"] = 9.0
    assert front.losses[0, 0] == 0.0, "the frame shares memory with the front"


def test_repr_is_a_table() -> None:
    losses = torch.tensor([[0.0, 1.0], [1.0, math.nan]])
    front = ParetoFront(losses, even(2), reference=[2.0, 2.0], task_names=("digit", "b"))
    assert str(front) == "\n".join(
        (
            "ParetoFront: 1 of 2 subproblems non-dominated (*), reference [2.0, 2.0]",
            "   w(digit)   w(b)  digit    b",
            "0     1.000  0.000      0    1  *",
            "1     0.000  1.000      1  nan",
        )
    )
