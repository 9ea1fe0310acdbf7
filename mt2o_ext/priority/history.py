"""Diagnostics of connection strength over a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..device import to_device
from ..entries import member

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..optim.history import StepHistory

__all__ = ["HistoryRecorder", "PriorityHistory"]


@dataclass(frozen=True)
class PriorityHistory:
    """Diagnostics of a run, on the host.

    Attributes:
        layers: the names of the connections, L.
        phases: uint8 [steps], 1 or 2.
        steps: int64 [R], the steps of phase 2 (from 0) at which shares were recorded.
        shares: float32 [R, L, T + 1], the part of a layer's channels that each task owns; the last: that none owns.
        conflicts: float64 [L, T], the part of the steps of phase 2 in which some task's gradient conflicted with that
            of the owner (NaN before the first).
        last: losses, skips and norms of the last steps, if the optimizer was made with ``history=``, else None.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 1), TaskBatchNorm2d(4, num_tasks=2))
        >>> optimizer = mt2o_ext.ConnectionStrengthFused(
        ...     model.named_parameters(), connections=find_connections(model), num_tasks=2, total_steps=2,
        ...     schedule=phase_two,
        ... )
        >>> def task_loss(task):
        ...     with select_task(model, task):
        ...         return (model(torch.ones(2, 1, 3, 3)) - task).square().mean()
        ...
        >>> losses = optimizer.step(task_loss)
        >>> optimizer.history().phases
        tensor([2], dtype=torch.uint8)
    """

    layers: Sequence[str]
    phases: Tensor
    steps: Tensor
    shares: Tensor
    conflicts: Tensor
    last: StepHistory | None = None

    def __str__(self) -> str:
        tasks = self.conflicts.shape[1]
        last = self.shares[-1] if len(self.shares) else self.shares.new_full((len(self.layers), tasks + 1), torch.nan)
        head = [f"task {task}" for task in range(tasks)]
        rows = [["layer", *(f"{name} owns" for name in head), "none", *(f"conflicts with {name}" for name in head)]]
        for name, shares, conflicts in zip(self.layers, last.tolist(), self.conflicts.tolist(), strict=True):
            rows.append([name, *(f"{part:.1%}" for part in [*shares, *conflicts])])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.rjust, row, widths)) for row in rows]
        return "\n".join([f"{len(self.phases)} steps, {int((self.phases == 1).sum())} of them phase 1", *lines])

    def plot(self) -> Figure:
        """The shares of each task over the steps, one panel for each layer (matplotlib, the extra ``pareto``).

        Raises:
            ValueError: before the first step of phase 2.
        """
        if not len(self.shares):
            raise ValueError("expected a run with steps of phase 2, got none: no channel has had an owner yet")
        from matplotlib.figure import Figure

        columns = min(4, len(self.layers))
        rows = -(-len(self.layers) // columns)
        figure = Figure(figsize=(3 * columns, 2.2 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flatten()
        for index, (panel, name) in enumerate(zip(panels, self.layers, strict=False)):
            tasks = self.shares.shape[2] - 1
            labels = [*(f"task {task}" for task in range(tasks)), "none"]
            colors = [*(f"C{task}" for task in range(tasks)), "0.85"]
            panel.stackplot(self.steps.tolist(), self.shares[:, index].T.tolist(), labels=labels, colors=colors)
            panel.set_title(name, fontsize="small")
            panel.set_ylim(0, 1)
        for panel in panels[len(self.layers) :]:
            panel.set_axis_off()
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), fontsize="small")
        figure.supxlabel("step", fontsize="small")
        figure.supylabel("share of channels", fontsize="small")
        return figure


class HistoryRecorder:
    """Collects a history while a run goes on, without waiting for the device.

    Args:
        layers: names of the connections.
        num_tasks: T.
        every: shares are recorded at every so many steps of phase 2.
    """

    def __init__(self, layers: Sequence[str], num_tasks: int, every: int) -> None:
        self.layers = list(layers)
        self.num_tasks = num_tasks
        self.every = every
        self.phases = bytearray()
        self.steps: list[int] = []
        self.shares: list[Tensor] = []
        self.projected = 0  # steps of phase 2 that were not skipped
        self.conflicts = torch.zeros(len(self.layers), num_tasks, dtype=torch.int64)

    def due(self) -> bool:
        """Return whether the shares of this step of phase 2 are kept."""
        return self.projected % self.every == 0

    def add_projection(self, shares: Tensor | None, coefficients: Tensor) -> None:
        """One step of phase 2; shares: float32 [L, T + 1] where they are due."""
        if shares is not None:
            self.steps.append(len(self.phases))
            self.shares.append(shares)
        if self.conflicts.device != coefficients.device:
            self.conflicts = to_device(self.conflicts, coefficients.device)
        self.conflicts = self.conflicts + (coefficients > 0)
        self.projected += 1

    def history(self) -> PriorityHistory:
        """Return what was collected so far, on the host."""
        empty = torch.zeros(0, len(self.layers), self.num_tasks + 1, dtype=torch.float32)
        return PriorityHistory(
            self.layers,
            torch.tensor(list(self.phases), dtype=torch.uint8),
            torch.tensor(self.steps, dtype=torch.int64),
            torch.stack(self.shares).cpu() if self.shares else empty,
            self.conflicts.cpu().double() / (self.projected or float("nan")),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what was collected, as numbers, lists of them, and a tensor on the CPU.

        What grows with the steps is in lists: distributed checkpoints load tensors into others of the same shape only.
        """
        return {
            "phases": list(self.phases),
            "steps": list(self.steps),
            "shares": torch.stack(self.shares).tolist() if self.shares else [],
            "projected": self.projected,
            "conflicts": self.conflicts.cpu().clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave, with tensors in the place of lists."""
        self.phases = bytearray(state["phases"].tolist())
        self.steps = state["steps"].tolist()
        self.shares = list(state["shares"].clone())
        self.projected = int(state["projected"])
        self.conflicts = state["conflicts"].clone()

    def checked(self, history: dict[str, Any], taken: int) -> dict[str, Any]:
        """Check what `state_dict` gave, before it goes to `load_state_dict`.

        Args:
            history: the state.
            taken: the number of steps that the run had taken by then.

        Returns:
            The state with tensors in the place of lists.

        Raises:
            TypeError: for an entry of another kind.
            ValueError: for the history of other connections, tasks or steps.
        """
        layers, tasks = self.conflicts.shape
        history = {**history, **{key: _as_tensor(history.get(key)) for key in ("phases", "steps", "shares")}}
        if isinstance(history["shares"], Tensor) and history["shares"].numel() == 0:
            history["shares"] = history["shares"].reshape(0, layers, tasks + 1)
        phases, steps = (member(history, key, None, "`history`") for key in ("phases", "steps"))
        if phases.dim() != 1 or steps.dim() != 1:
            raise ValueError(f"expected `phases` and `steps` of one dimension, got {phases.dim()} and {steps.dim()}")
        if len(phases) != taken:
            raise ValueError(f"expected `phases` of {taken} steps (`draw`), got those of {len(phases)}")
        conflicts = member(history, "conflicts", None, "`history`")
        if conflicts.shape != (layers, tasks):
            got = " and ".join(map(str, conflicts.shape))
            raise ValueError(f"expected the state of {layers} connections and {tasks} tasks, got one of {got}")
        return {
            "phases": phases.long(),
            "steps": steps.long(),
            "shares": member(history, "shares", (len(steps), layers, tasks + 1), "`history`").float(),
            "projected": int(member(history, "projected", (), "`history`")),
            "conflicts": conflicts.long(),
        }


def _as_tensor(numbers: Any) -> Any:
    """A list of numbers, or of such lists, as a tensor; anything else, and what does not fit, as it is."""
    try:
        return torch.tensor(numbers, dtype=torch.float64) if isinstance(numbers, list) else numbers
    except (TypeError, ValueError):
        return numbers
