"""The Pareto front that K subproblems have reached: hypervolume, choice of a subproblem, tables, files, plots.

All losses are minimised.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..preferences import check_preferences
from .choice import chosen, non_dominated
from .files import read, write
from .states import States, checked_states, restored
from .tables import as_frame, as_text
from .values import Numbers, checked_losses, checked_metrics, checked_names, checked_reference
from .volume import hypervolume

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

__all__ = ["ParetoFront"]


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
        metrics: other numbers of each subproblem, such as accuracies: a mapping (or a data frame) from their names to
            [K] numbers, or K mappings from their names to a number. Kept as a dictionary of float64 [K]. They decide
            nothing: dominance, hypervolume and choice go by the losses.
        states: the K state dicts of the models, or nothing. Kept on the CPU in their dtypes.

    Raises:
        TypeError: or ValueError if these do not fit together.

    Example:
        >>> losses = [[0.1, 0.9], [0.4, 0.4], [0.5, 0.6]]
        >>> metrics = {"accuracy": [0.8, 0.9, 0.7]}
        >>> front = ParetoFront(losses, mt2o_ext.preferences.even(3), reference=[1.0, 1.0], metrics=metrics)
        >>> front
        ParetoFront: 2 of 3 subproblems non-dominated (*), reference [1.0, 1.0]
           w(task 0)  w(task 1)  task 0  task 1  accuracy
        0      1.000      0.000     0.1     0.9       0.8  *
        1      0.500      0.500     0.4     0.4       0.9  *
        2      0.000      1.000     0.5     0.6       0.7
        >>> front.choose([0.5, 0.5])
        0
    """

    losses: Tensor
    preferences: Tensor
    reference: Tensor | None = None
    task_names: Sequence[str] = ()
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    states: States = ()

    def __post_init__(self) -> None:
        losses = checked_losses(self.losses)
        num_subproblems, num_tasks = losses.shape
        values = {
            "losses": losses,
            "preferences": check_preferences(self.preferences, num_subproblems, num_tasks),
            "reference": None if self.reference is None else checked_reference(self.reference, num_tasks),
            "task_names": checked_names(self.task_names, num_tasks),
            "metrics": checked_metrics(self.metrics, num_subproblems),
            "states": checked_states(self.states, num_subproblems),
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
        return non_dominated(self.losses)

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
        return chosen(self.losses, preference, self.ideal, self.nadir)

    def model(self, k: int, template: nn.Module) -> nn.Module:
        """Return subproblem `k` as a model: a copy of `template` with its parameters and buffers.

        The copy is on the device and has the dtypes of `template`, which stays as it is, and shares no memory with the
        front. Save its state dict, or `front.states[k]`: either is as large as this one model.

        Args:
            k: the subproblem, for instance `front.choose(preference)`.
            template: a model of the same architecture.

        Raises:
            ValueError: for a front that was made without `states`.
            IndexError: for a subproblem that there is not.
            RuntimeError: for a template of another architecture, from its load_state_dict.
        """
        return restored(self.states, k, template)

    def plot(self, ax: Axes | None = None, tasks: Sequence[int | str] | None = None) -> Axes:
        """Draws the front with matplotlib and returns the axes: `mt2o_ext.pareto.plot.plot_front`."""
        from .plot import plot_front

        return plot_front(self, ax, tasks)

    def to_frame(self) -> pandas.DataFrame:
        """One row per subproblem; columns preference_<task>, loss_<task>, metric_<name> and non_dominated."""
        return as_frame(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes tensors and strings with `torch.save`; `torch.load(path, weights_only=True)` reads them too."""
        write(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ParetoFront:
        """Reads what `save` wrote, running no code from the file.

        Raises:
            ValueError: for any other content.
        """
        return cls(**read(path))

    def __len__(self) -> int:
        return self.num_subproblems

    def __repr__(self) -> str:
        """A table: preferences, losses and metrics of each subproblem, and a star at the non-dominated ones."""
        return as_text(self)

    def _front_losses(self) -> Tensor:
        front = self.losses[self.non_dominated]
        if len(front) == 0:
            raise ValueError(
                "expected a subproblem with finite losses, got none, so there is no front: every run has diverged, "
                "lower the learning rate"
            )
        return front
