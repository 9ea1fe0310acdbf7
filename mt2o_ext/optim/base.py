"""What every optimizer of this package is: a torch.optim.Optimizer over flat buffers, and the order of a step."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ..flat import FlatParameters
from ..ops import FIELDS, Order, step_
from .rules import BaseRule
from .state import StateInBuffers

__all__ = ["FlatOptimizer"]

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class FlatOptimizer(StateInBuffers, torch.optim.Optimizer):
    """Parameter groups, buffers, non-finite gradients and the fused step; subclasses say what is combined and blended.

    Args:
        params: parameters, named parameters, or parameter groups, as for ``torch.optim``.
        defaults: options of a group.
        base: the base rule.
        num_rows: K, the number of subproblems.
        stacked: every parameter has a leading dimension K.
        skip_all: skip the step of all subproblems where one has a non-finite gradient (else that subproblem's only).
    """

    def __init__(
        self, params: Any, defaults: dict[str, Any], base: BaseRule, *, num_rows: int, stacked: bool, skip_all: bool
    ) -> None:
        self._base = base
        self._num_rows = num_rows
        self._stacked = stacked
        self._skip_all = skip_all
        self._flat: list[FlatParameters] | None = None  # made once all groups are known
        self._row = 0
        self._skipped = torch.zeros(num_rows, dtype=torch.int64)
        self._warned: set[str] = set()
        super().__init__(params, defaults)
        self._build()

    # ------------------------------------------------------------------ parameter groups
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, also after steps: buffers are rebuilt, state is kept.

        Raises TypeError or ValueError, before anything is changed, for parameters of another dtype than float32, float64,
        bfloat16 and float16, on another device than the others, not dense, without the leading dimension K (if
        stacked), sharing memory with another one or given twice; and for options out of range.
        """
        group = dict(param_group)
        params = group["params"]
        if isinstance(params, Tensor):
            params = [params]
        elif isinstance(params, set):
            raise TypeError("optimizer parameters need to be organized in ordered collections, but a set was given")
        group["params"] = list(params)
        tensors = [p[1] if isinstance(p, tuple) else p for p in group["params"]]
        known = [p for other in self.param_groups for p in other["params"]]
        self._check_parameters(tensors, known)
        options = {**self.defaults, **group}
        if not float(options["lr"]) >= 0.0:
            raise ValueError(f"lr must be at least 0, not {options['lr']}")
        self._base.check(options)
        super().add_param_group(group)
        if self._flat is not None:
            self._rebuild()

    def _check_parameters(self, tensors: Sequence[Any], known: Sequence[Tensor]) -> None:
        device = next((p.device for p in known), None)
        owners = {p.data_ptr(): p for p in known if p.numel() > 0}
        for p in tensors:
            if not isinstance(p, Tensor):
                raise TypeError(f"expected tensors to optimize, got {type(p).__name__}")
            if isinstance(p, torch.nn.parameter.UninitializedParameter):
                raise ValueError("expected initialized parameters; run the model once before making the optimizer")
            if p.layout != torch.strided or p.dtype not in DTYPES:
                names = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
                raise TypeError(f"expected dense parameters of {names}, got {p.dtype} with layout {p.layout}")
            if p.device.type == "meta" or (device is not None and p.device != device):
                raise ValueError(
                    f"expected all parameters on one device, got {device} and {p.device}; move the model first"
                )
            device = p.device
            if self._stacked and (p.dim() < 1 or p.shape[0] != self._num_rows):
                raise ValueError(
                    f"stacked=True: expected parameters with a leading dimension {self._num_rows} (num_subproblems), "
                    f"got {list(p.shape)}; make them with SubproblemBank"
                )
            other = owners.setdefault(p.data_ptr(), p) if p.numel() > 0 else p
            if other is not p:
                raise ValueError(
                    f"two parameters of shapes {list(other.shape)} and {list(p.shape)} share memory; tie weights by using one "
                    "nn.Parameter in both places"
                )

    def _parameters(self) -> list[tuple[dict[str, Any], Tensor]]:
        return [(group, p) for group in self.param_groups for p in group["params"]]

    # ------------------------------------------------------------------ buffers
    def _build(self) -> None:
        """Makes the flat buffers, one for each dtype, and the parameters views of them."""
        by_dtype: dict[torch.dtype, list[tuple[dict[str, Any], Tensor]]] = {}
        for group, p in self._parameters():
            by_dtype.setdefault(p.dtype, []).append((group, p))
        self._flat = []
        self._groups: list[list[dict[str, Any]]] = []  # for each buffer, the group of each of its segments
        self._row = 0
        for members in by_dtype.values():
            flat = FlatParameters([p for _, p in members], self._num_rows, stacked=self._stacked)
            self._prepare(flat)
            self._flat.append(flat)
            self._groups.append([group for group, _ in members])
        self._attach_state()

    def _prepare(self, flat: FlatParameters) -> None:
        """Gives a new buffer what the subclass keeps beside moments."""

    def _rebuild(self) -> None:
        """Makes the buffers anew after a change of the parameters' number, dtype or device, and keeps what was in them."""
        row, kept = self._row, self._export_state()
        present = {p: p.data for _, p in self._parameters()}
        self._build()
        self._import_state(kept)
        for flat in self._flat or []:
            for p in flat.parameters:  # of the row that they show, the parameters themselves are the truth
                p.data = present[p]
            flat.adopt(row)
            flat.activate(row)
        self._row = row

    def _synchronize(self) -> list[FlatParameters]:
        """The buffers, with what was done to the parameters since the last step."""
        assert self._flat is not None
        if not torch.compiler.is_compiling() and any(flat.moved() for flat in self._flat):
            self._check_parameters([p for _, p in self._parameters()], [])
            self._rebuild()
        for flat in self._flat:
            flat.synchronize(self._row)
        return self._flat

    def _refresh_segments(self, flat: FlatParameters, groups: Sequence[dict[str, Any]]) -> None:
        """Writes the hyper-parameters of the groups to the kernel's table, if they have changed."""
        rows: list[list[float]] = []
        tensor_lrs: list[tuple[int, int, Tensor]] = []
        for _, run in groupby(groups, key=id):
            group = next(run)
            count = 1 + sum(1 for _ in run)
            fields = self._base.fields(group)
            fields["transfer"] = group.get("transfer", True)
            fields["ema"] = group.get("ema") or 0.0
            lr = group["lr"]
            if isinstance(lr, Tensor):
                tensor_lrs.append((len(rows), count, lr))
            else:
                fields["lr"] = lr
            rows += [[fields.get(name, 0.0) for name in FIELDS]] * count
        if torch.compiler.is_compiling() or rows != flat.segment_values:
            table = torch.tensor(rows, dtype=torch.float64, device=flat.device)
            if flat.segments.shape == table.shape:
                flat.segments.copy_(table)
            else:
                flat.segments = table
            flat.segment_values = rows
            flat.set_transfer([bool(row[FIELDS.index("transfer")]) for row in rows])
        for first, count, lr in tensor_lrs:
            flat.segments[first : first + count, 0] = lr.to(flat.segments)

    # ------------------------------------------------------------------ the step
    def _find_nonfinite(self, bad_losses: Tensor | None) -> Tensor:
        """float32 [K], 1 where a row must be skipped: its gradients or losses are infinite or NaN."""
        assert self._flat is not None
        found = torch.zeros(self._num_rows, device=self._flat[0].device)
        for flat in self._flat:
            flat.find_nonfinite(found)
        if bad_losses is not None:
            found = torch.maximum(found, bad_losses.to(found))
        return found.amax().expand_as(found).contiguous() if self._skip_all else found

    def _count_skipped(self, found: Tensor) -> bool:
        """Counts skipped rows, warns about the first; True if there is none left to update."""
        if torch.compiler.is_compiling():
            self._skipped += found.to(self._skipped)
            return False
        rows = found.nonzero().flatten().tolist()
        if not rows:
            return False
        self._skipped += (found != 0).to(self._skipped)
        self._warn_once(
            "nonfinite",
            f"a gradient or loss of subproblem {', '.join(map(str, rows))} was infinite or NaN: this step was skipped for it and "
            "nothing of it was changed. Later ones are only counted, in optimizer.skipped_steps.",
        )
        return len(rows) == self._num_rows

    def _apply(self, found: Tensor, mixes: Iterable[Tensor | None], order: Order) -> None:
        """The fused step of every buffer; mixes: for each of them M [K, K] or [S, K, K], or None."""
        assert self._flat is not None
        rule = self._base.rule(self.param_groups)
        names = {buffer for group in self.param_groups for buffer in self._base.moments(group).values()}
        for flat, mix in zip(self._flat, mixes, strict=True):
            moments = [
                flat.buffer(name) if name in names else None for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
            ]
            low = None if flat.values is flat.theta else flat.values
            step_(
                flat.theta, *moments, flat.buffers.get("ema"), low, flat.step, flat.constants, flat.grads, None, mix,
                flat.segments, flat.chunks, flat.update_active(), None, found, rule=rule, order=order,
            )  # fmt: skip
            flat.mark_changed()
        self._attach_state()

    @property
    def skipped_steps(self) -> Tensor:
        """int64 [K]: how many steps of each subproblem were skipped for an infinite or NaN gradient or loss."""
        return self._skipped.clone()

    def _warn_once(self, key: str, text: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(text, UserWarning, stacklevel=3)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets all gradients, those of all subproblems."""
        super().zero_grad(set_to_none)
        for flat in self._flat or []:
            flat.forget_gradients()
