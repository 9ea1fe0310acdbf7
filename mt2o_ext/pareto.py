"""The Pareto front that K subproblems have reached: hypervolume, choice of a subproblem, tables, files, plots.

All losses are minimised.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from .preferences import check_preferences

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

Numbers: TypeAlias = "Tensor | Sequence[float]"

_FORMAT = "mt2o_ext.ParetoFront/1"


def hypervolume(losses: Tensor | Sequence[Sequence[float]], reference: Numbers) -> float:
    """Exact volume between `reference` [T] and the losses [K, T]: of all points that some row is better than.

    Computed by moocore (the `pareto` extra). Rows that are not better than the reference in every task contribute
    nothing. For more than four tasks the time grows steeply with K: for seven, about 10 ms at K = 50 and a second at
    K = 200. Source: Guerreiro, Fonseca and Paquete, "The hypervolume indicator", ACM Comput. Surv. 2021.

    Raises:
        ValueError: for NaN and -infinity.
    """
    points = _float64("losses", losses)
    if points.ndim != 2:
        raise ValueError(f"expected losses of shape [K, T], got {tuple(points.shape)}: give one row for each model")
    corner = _check_reference(reference, points.shape[1])
    unusable = points.isnan() | (points == -torch.inf)
    if unusable.any():
        rows = unusable.any(1).nonzero().flatten().tolist()
        raise ValueError(
            f"expected losses without NaN and -infinity, got them in rows {rows}: leave these out or find the diverged "
            "runs"
        )
    try:
        import moocore
    except ImportError as error:
        raise ImportError('hypervolume needs moocore: pip install "mt2o_ext[pareto]"') from error
    return float(moocore.hypervolume(points.numpy(), ref=corner.numpy()))


@dataclass(frozen=True, eq=False, repr=False)
class ParetoFront:
    """Losses of K subproblems on T tasks in one evaluation: a snapshot that shares no memory with its sources.

    Args:
        losses: [K, T], kept as float64 on the CPU. Rows with NaN or infinity (diverged) are allowed and never on the
            front.
        preferences: [K, T], on the simplex.
        reference: [T] or None, the point that the hypervolume is measured from. Fix it before the experiment, for
            instance at the losses of a constant predictor.
        task_names: T different strings; "task 0", "task 1", ... if empty.

    Raises:
        TypeError: or ValueError if these do not fit together.

    Example:
        >>> losses = [[0.1, 0.9], [0.4, 0.4], [0.5, 0.6]]
        >>> front = ParetoFront(losses, mt2o_ext.preferences.even(3), reference=[1.0, 1.0])
        >>> front
        ParetoFront: 2 of 3 subproblems non-dominated (*), reference [1.0, 1.0]
           w(task 0)  w(task 1)  task 0  task 1
        0      1.000      0.000     0.1     0.9  *
        1      0.500      0.500     0.4     0.4  *
        2      0.000      1.000     0.5     0.6
        >>> front.choose([0.5, 0.5])
        0
    """

    losses: Tensor
    preferences: Tensor
    reference: Tensor | None = None
    task_names: Sequence[str] = ()

    def __post_init__(self) -> None:
        losses = _float64("losses", self.losses)
        if losses.ndim != 2 or 0 in losses.shape:
            raise ValueError(
                f"expected losses of shape [K, T] with at least one row and one task, got {tuple(losses.shape)}: give "
                "one row for each subproblem"
            )
        num_subproblems, num_tasks = losses.shape
        values = {
            "losses": losses,
            "preferences": check_preferences(self.preferences, num_subproblems, num_tasks),
            "reference": None if self.reference is None else _check_reference(self.reference, num_tasks),
            "task_names": _check_names(self.task_names, num_tasks),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def num_subproblems(self) -> int:
        """K."""
        return self.losses.shape[0]

    @property
    def num_tasks(self) -> int:
        """T."""
        return self.losses.shape[1]

    @property
    def non_dominated(self) -> Tensor:
        """bool [K]: finite, and no other finite row is as good in every task and better in one. Duplicates all stay."""
        finite = self.losses.isfinite().all(1)
        mine, others = self.losses[:, None], self.losses[None]
        dominates = (others <= mine).all(2) & (others < mine).any(2) & finite
        return finite & ~dominates.any(1)

    @property
    def ideal(self) -> Tensor:
        """[T]: the least loss of each task on the front.

        Raises:
            ValueError: when all rows have diverged.
        """
        return self._front_losses().amin(0)

    @property
    def nadir(self) -> Tensor:
        """[T]: the largest loss of each task on the front (among non-dominated rows only). Raises as `ideal`."""
        return self._front_losses().amax(0)

    def hypervolume(self, reference: Numbers | None = None) -> float:
        """`hypervolume` from `reference` [T], or else from the front's own; raises ValueError if there is neither."""
        corner = self.reference if reference is None else reference
        if corner is None:
            raise ValueError(
                "expected a reference point, got None: give hypervolume(reference) or ParetoFront(reference=...) one "
                f"loss for each of the {self.num_tasks} tasks, such as those of a constant predictor"
            )
        return hypervolume(self.losses, corner)

    def choose(self, preference: Numbers) -> int:
        """Index of the non-dominated subproblem that suits `preference` [T] best.

        The preference is non-negative and not all zero; only its ratios count.

        Takes the least weighted Tchebycheff distance max_t w_t z_t from the ideal point, where z = (losses - ideal) /
        (nadir - ideal) is in [0, 1] and z_t = 0 where all non-dominated rows agree; among equals the least sum of z
        (the augmentation, in its limit of weight zero), then the lowest index. For two tasks, more weight for a task
        never makes its loss larger.
        """
        weights = _float64("preference", preference)
        if weights.shape != (self.num_tasks,):
            raise ValueError(
                f"expected a preference of shape ({self.num_tasks},), got {tuple(weights.shape)}: give one weight for "
                "each task"
            )
        if not (weights.isfinite().all() and (weights >= 0.0).all() and (weights > 0.0).any()):
            raise ValueError(
                f"expected a preference that is finite, not negative and not all zero, got {weights.tolist()}: give "
                "each task a weight of at least 0"
            )
        span = self.nadir - self.ideal
        scaled = (self.losses - self.ideal) / span.where(span > 0.0, 1.0)
        candidates = self.non_dominated.nonzero().flatten().tolist()
        return min(candidates, key=lambda k: ((weights * scaled[k]).max().item(), scaled[k].sum().item()))

    def plot(self, ax: Axes | None = None, tasks: Sequence[int | str] | None = None) -> Axes:
        """Draws the front with matplotlib and returns the axes: `mt2o_ext.pareto_plot.plot_front`."""
        from .pareto_plot import plot_front

        return plot_front(self, ax, tasks)

    def to_frame(self) -> pandas.DataFrame:
        """One row per subproblem; columns preference_<task>, loss_<task> and non_dominated."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError('to_frame needs pandas: pip install "mt2o_ext[pareto]"') from error
        columns = {f"preference_{name}": self.preferences[:, t].numpy() for t, name in enumerate(self.task_names)}
        columns |= {f"loss_{name}": self.losses[:, t].numpy() for t, name in enumerate(self.task_names)}
        columns["non_dominated"] = self.non_dominated.numpy()
        return pandas.DataFrame(columns, index=pandas.RangeIndex(self.num_subproblems, name="subproblem"))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes tensors and strings with `torch.save`; `torch.load(path, weights_only=True)` reads them too."""
        content = {name: getattr(self, name) for name in ("losses", "preferences", "reference")}
        torch.save({"format": _FORMAT, **content, "task_names": list(self.task_names)}, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ParetoFront:
        """Reads what `save` wrote, running no code from the file.

        Raises:
            ValueError: for any other content.
        """
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise ValueError(
                f"expected a file in the format {_FORMAT!r}, got {os.fspath(path)}, which was not written by "
                "ParetoFront.save: load another one"
            )
        return cls(*(content[name] for name in ("losses", "preferences", "reference", "task_names")))

    def __len__(self) -> int:
        return self.num_subproblems

    def __repr__(self) -> str:
        """A table: preferences and losses of each subproblem, and a star at the non-dominated ones."""
        on_front = self.non_dominated.tolist()
        header = ["", *(f"w({name})" for name in self.task_names), *self.task_names, ""]
        table = [header]
        for k, (preference, losses) in enumerate(zip(self.preferences.tolist(), self.losses.tolist(), strict=True)):
            numbers = [*(f"{w:.3f}" for w in preference), *(f"{loss:.4g}" for loss in losses)]
            table.append([str(k), *numbers, "*" if on_front[k] else ""])
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(map(str.rjust, row, widths)).rstrip() for row in table]
        reference = "" if self.reference is None else f", reference {[round(r, 6) for r in self.reference.tolist()]}"
        title = f"ParetoFront: {sum(on_front)} of {len(self)} subproblems non-dominated (*){reference}"
        return "\n".join([title, *lines])

    def _front_losses(self) -> Tensor:
        front = self.losses[self.non_dominated]
        if len(front) == 0:
            raise ValueError(
                "expected a subproblem with finite losses, got none, so there is no front: every run has diverged, "
                "lower the learning rate"
            )
        return front


def _float64(name: str, values: object) -> Tensor:
    """A copy on the CPU."""
    try:
        return torch.as_tensor(values, dtype=torch.float64).detach().cpu().clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"expected {name} as a tensor or (nested) list of numbers, got {type(values).__name__}: convert "
            f"it ({error})"
        ) from error


def _check_names(names: Sequence[str] | None, num_tasks: int) -> tuple[str, ...]:
    if not names:
        return tuple(f"task {task}" for task in range(num_tasks))
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"expected task_names as a sequence of strings, got {names!r}: give a list")
    if len(names) != num_tasks or len(set(names)) != num_tasks:
        raise ValueError(f"expected {num_tasks} different task_names, got {tuple(names)}: give one for each task")
    return tuple(names)


def _check_reference(reference: object, num_tasks: int) -> Tensor:
    corner = _float64("reference", reference)
    if corner.shape != (num_tasks,):
        raise ValueError(
            f"expected a reference of shape ({num_tasks},), got {tuple(corner.shape)}: give one loss for each task"
        )
    if not corner.isfinite().all():
        raise ValueError(f"expected a finite reference, got {corner.tolist()}: choose other losses")
    return corner
