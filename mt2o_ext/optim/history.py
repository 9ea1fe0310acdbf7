"""A record of the last steps: losses, weights, norms, conflicts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..checks import check_count
from ..device import capturing
from ..entries import member, member_dict, tensors_of

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

__all__ = ["Recorder", "StepHistory"]

RECORDED = {"losses", "weights", "gram", "grad_norm", "skipped", "points", "transferred"}


@dataclass(frozen=True, eq=False)
class StepHistory:
    """The last N steps of an optimizer, on the host, the oldest first.

    Attributes:
        steps: int64 [N], the numbers of the steps, from 0.
        losses: float64 [N, K, T], or None where no step had any (a closure that did backward itself).
        weights: float64 [N, K, T] (per tensor: [N, K, S, T]), of the task gradients; None without a weighting.
        cosines: float64 [N, K, T, T], between the task gradients, from the Gram matrix that the weighting needed
            anyway; None where it needs none.
        grad_norm: float64 [N, K] (of vertices [N, T]), of the combined gradients, before ``max_norm`` shortened them;
            None without ``max_norm``, which measures it.
        skipped: bool [N, K], whether the step was skipped.
        points: float64 [N, K, T], on the simplex, where the losses were computed; None where these are fixed
            (``optimizer.preferences``).
        transferred: float64 [N, K], of rows, how much of each subproblem's parameters came from others, 1 - M_kk, mean
            over the tensors: the strength of the transfer, 0 where `mt2o_ext.transfer.Guarded` refused it; NaN in steps
            without a transfer, None where there was none at all.
        first: the number of the first of the K subproblems; not 0 where other ranks have those before it.

    Example:
        >>> p = torch.nn.Parameter(torch.tensor([1.0, -1.0]))
        >>> optimizer = mt2o_ext.WeightedFused([p], num_tasks=2, weighting="upgrad", history=10)
        >>> for _ in range(3):
        ...     losses = optimizer.step(lambda: [(p - 1).square().sum(), (p + 1).square().sum()])
        ...
        >>> optimizer.history().conflicts
        tensor([[1],
                [1],
                [1]])
    """

    steps: Tensor
    skipped: Tensor
    losses: Tensor | None = None
    weights: Tensor | None = None
    cosines: Tensor | None = None
    grad_norm: Tensor | None = None
    points: Tensor | None = None
    transferred: Tensor | None = None
    first: int = 0

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def conflicts(self) -> Tensor | None:
        """int64 [N, K]: how many pairs of task gradients had a negative inner product; None without cosines."""
        return None if self.cosines is None else (self.cosines.triu(1) < 0).sum((2, 3))

    def columns(self) -> dict[str, Tensor]:
        """Tensors [N] by a name for each number, as loggers take them: "loss 0", "weight 1", "cosine 0 1", ...

        With several subproblems the names end in theirs: "loss 0, subproblem 3"; of vertices there is "grad_norm,
        vertex 0", whatever the number of points.
        """
        found = {"step": self.steps}
        for k in range(self.skipped.shape[1]):
            of = f", subproblem {self.first + k}" if self.skipped.shape[1] > 1 or self.first > 0 else ""
            found[f"skipped{of}"] = self.skipped[:, k]
            for name, table in (("loss", self.losses), ("weight", self.weights), ("point", self.points)):
                if table is not None and table.dim() == 3:
                    found |= {f"{name} {task}{of}": table[:, k, task] for task in range(table.shape[2])}
            if self.cosines is not None:
                pairs = combinations(range(self.cosines.shape[2]), 2)
                found |= {f"cosine {i} {j}{of}": self.cosines[:, k, i, j] for i, j in pairs}
            if self.transferred is not None:
                found[f"transferred{of}"] = self.transferred[:, k]
            if self.grad_norm is not None and self.points is None:
                found[f"grad_norm{of}"] = self.grad_norm[:, k]
        if self.grad_norm is not None and self.points is not None:  # of vertices, of which there are T
            found |= {f"grad_norm, vertex {t}": norms for t, norms in enumerate(self.grad_norm.unbind(1))}
        return found

    def to_frame(self) -> pandas.DataFrame:
        """A data frame with a row for each step and the `columns`; needs pandas."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError('to_frame needs pandas: pip install "mt2o_ext[pareto]"') from error
        return pandas.DataFrame({name: column.numpy() for name, column in self.columns().items()}).set_index("step")

    def plot(self) -> Figure:
        """Losses, weights, cosines and norms over the steps, as far as there are any; needs matplotlib."""
        try:
            from matplotlib import pyplot
        except ImportError as error:
            raise ImportError('plot needs matplotlib: pip install "mt2o_ext[pareto]"') from error
        columns = self.columns()
        all_kinds = ("loss", "weight", "cosine", "grad_norm", "transferred")
        kinds = [kind for kind in all_kinds if any(kind in name for name in columns)]
        figure, axes = pyplot.subplots(max(1, len(kinds)), 1, sharex=True, squeeze=False, layout="constrained")
        for axis, kind in zip(axes[:, 0], kinds, strict=False):
            for name, column in columns.items():
                if name.startswith(kind):
                    axis.plot(self.steps, column, label=name)
            axis.set_ylabel(kind.replace("_", " "))
            axis.legend(fontsize="small")
        axes[-1, 0].set_xlabel("step")
        return figure


class Recorder:
    """Keeps the last steps on their device, without anybody waiting for it.

    Args:
        length: the number of steps that are kept.
        first: as of `StepHistory`.
    """

    def __init__(self, length: int, first: int = 0) -> None:
        self._first = first
        self._length = check_count("history", length)
        self._count = 0
        self._rings: dict[str, Tensor] = {}

    @torch._disable_dynamo
    @torch.no_grad()
    def add(self, **values: Tensor | None) -> None:
        """Adds a step.  What is None counts as NaN; steps that a CUDA graph repeats are not seen."""
        there = {name: value for name, value in values.items() if value is not None}
        if any(capturing(value.device) for value in there.values()):
            return
        place = self._count % self._length
        for name, value in there.items():
            ring = self._rings.get(name)
            if ring is None or ring.shape[1:] != value.shape:
                ring = torch.full((self._length, *value.shape), torch.nan, dtype=torch.float64, device=value.device)
            self._rings[name] = ring.to(value.device)  # a loaded one may lie on the host
            self._rings[name][place] = value
        for name in self._rings.keys() - there.keys():
            self._rings[name][place] = torch.nan
        self._count += 1

    def history(self) -> StepHistory:
        """The recorded steps, on the host: this waits for the device."""
        number = min(self._count, self._length)
        order = torch.arange(self._count - number, self._count, dtype=torch.int64)
        rows = {name: ring.cpu()[order % self._length] for name, ring in self._rings.items()}
        gram = rows.pop("gram", None)
        if gram is not None:
            gram = gram if gram.dim() > 3 else torch.diag_embed(gram)  # of squares alone
            lengths = gram.diagonal(dim1=-2, dim2=-1).sqrt()
            rows["cosines"] = gram / (lengths.unsqueeze(-1) * lengths.unsqueeze(-2))
        skipped = rows.pop("skipped", torch.zeros(number, 1, dtype=torch.float64))
        return StepHistory(order, skipped != 0, **rows, first=self._first)

    # ------------------------------------------------------------------ state
    def state_dict(self) -> dict[str, Any]:
        """The recorded steps; NaN, which no state has, are marked beside them."""
        missing = {name: ring.isnan() for name, ring in self._rings.items()}
        rings = {name: torch.where(missing[name], 0.0, ring) for name, ring in self._rings.items()}
        return {"length": self._length, "count": self._count, "rings": rings, "missing": missing}

    def loaded(self, state: dict[str, Any]) -> Callable[[], None]:
        """Checks what `state_dict` gave.

        Returns:
            A function that takes the record over, if it is of as many steps; else the record begins anew.

        Raises:
            TypeError: for an entry of another kind.
            ValueError: for an entry that is missing.
        """
        state = member_dict({"history": state}, "history", "the optimizer")
        length, count = (int(member(state, key, (), "the history")) for key in ("length", "count"))
        rings, missing = (tensors_of(state, key, "the history") for key in ("rings", "missing"))
        shapes = [{name: tensor.shape for name, tensor in side.items()} for side in (rings, missing)]
        if shapes[0] != shapes[1] or any(len(shape) == 0 or shape[0] != length for shape in shapes[0].values()):
            raise ValueError(f"expected `rings` and `missing` of the history alike, of {length} steps, got {shapes}")
        if unknown := rings.keys() - RECORDED:
            raise ValueError(f"expected `rings` of {sorted(RECORDED)}, got {sorted(unknown)} too")
        if any(mask.dtype != torch.bool for mask in missing.values()):
            raise TypeError("expected `missing` of the history as bools, got other numbers")
        if any(not ring.is_floating_point() or bool(ring.isnan().any()) for ring in rings.values()):
            raise ValueError("expected `rings` of the history as real numbers, without NaN, got others")

        def commit() -> None:
            if length == self._length:
                self._count = count
                self._rings = {name: torch.where(missing[name], torch.nan, ring) for name, ring in rings.items()}

        return commit
