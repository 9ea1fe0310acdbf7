"""What every optimizer of this package is: a torch.optim.Optimizer over flat buffers, and the order of a step."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..base import BaseRule
from ..checks import check_positive
from ..flat import FlatParameters
from ..flat_gradients import to_device
from ..ops import FIELDS, Order, combine_, step_
from ..ranks import as_ranks, describe, warning_of_drift
from .nonfinite import LateFlags
from .now import Now
from .parameters import check_memory, check_parameters
from .saved import SavedState
from .skipped import NONFINITE, SkippedSteps
from .skips import ReportsSkips
from .state import cloned

__all__ = ["FlatOptimizer"]

LR, TRANSFER = FIELDS.index("lr"), FIELDS.index("transfer")


class FlatOptimizer(SavedState, ReportsSkips, torch.optim.Optimizer):
    """Parameter groups, buffers, non-finite gradients and the fused step; subclasses say what is combined and blended.

    Args:
        params: parameters, named parameters, or parameter groups, as for ``torch.optim``.
        defaults: options of a group.
        base: the base rule.
        num_rows: K, the number of subproblems.
        num_tasks: T, the number of gradients kept of each subproblem's shared parameters.  With T > 1 a group may set
            ``task``: a head, whose parameters belong to this task alone and keep one gradient.
        stacked: every parameter has a leading dimension K.
        ema: decay of a running average of theta, or None.
        max_norm: see `_clipped`.
        skip_all: skip the step of all subproblems where one has a non-finite gradient (else that subproblem's only).
        process_group: data parallelism; see :mod:`mt2o_ext.ranks`.
    """

    def __init__(
        self,
        params: Any,
        defaults: dict[str, Any],
        base: BaseRule,
        *,
        num_rows: int,
        num_tasks: int = 1,
        stacked: bool,
        ema: float | None,
        max_norm: float | None,
        skip_all: bool,
        process_group: Any = None,
    ) -> None:
        if ema is not None and not 0.0 <= ema < 1.0:
            raise ValueError(f"ema must be in [0, 1), not {ema}")
        self._max_norm = None if max_norm is None else check_positive("max_norm", max_norm)
        self._base = base
        self._num_rows = num_rows
        self._task_rows = num_tasks
        self._stacked = stacked
        self._ema = ema
        self._skip_all = skip_all
        self._flat: list[FlatParameters] = []
        self._built = False  # once all groups are known
        self._now = Now()
        self._skipped = torch.zeros(num_rows, dtype=torch.int64)
        self._warned: set[str] = set()
        self._skips = SkippedSteps(num_rows)
        self._ranks = as_ranks(process_group)
        self._alone = process_group is None  # as far as was said, and not looked into yet
        super().__init__(params, defaults)
        check_memory([p for _, p in self._parameters()])
        if self._ranks is not None:
            self._ranks.agree({**self._description(), **describe(self.param_groups)})
            self._ranks.share_([p.data for _, p in self._parameters()])
            self._share_draws()
        self._build()

    # ------------------------------------------------------------------ parameter groups
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, also after steps: buffers are rebuilt, state is kept.

        Raises TypeError or ValueError, before anything is changed, for parameters of another dtype than float32,
        float64, bfloat16 and float16, on another device than the others, not dense, without the leading dimension K (if
        stacked), sharing memory with another one or given twice; and for options out of range.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"expected a parameter group as a dict, got {type(param_group).__name__}")
        group = dict(param_group)
        params = group["params"]
        if isinstance(params, Tensor):
            params = [params]
        elif isinstance(params, set):
            raise TypeError("expected parameters in an ordered collection, got a set")
        group["params"] = list(params)
        tensors = [p[1] if isinstance(p, tuple) else p for p in group["params"]]
        device = next((p.device for other in self.param_groups for p in other["params"]), None)
        check_parameters(tensors, device, self._num_rows if self._stacked else None)
        self._check_options({**self.defaults, **group})
        if self._built:
            self._read_shown()
            known = {p for _, p in self._parameters()}
            check_memory([*known, *(p for p in tensors if p not in known)])
        if self._built and self._ranks is not None:
            self._ranks.agree(
                {"call": "add_param_group()", **describe([{**self.defaults, **group, "params": tensors}])}
            )
            self._ranks.share_([p.data for p in tensors])
        super().add_param_group(group)
        if self._built:
            self._rebuild()

    def _check_options(self, options: dict[str, Any]) -> None:
        """Raises ValueError or TypeError for options of a group that are out of range."""
        lr = options["lr"]
        real = isinstance(lr, (int, float)) and not isinstance(lr, bool)
        if not real and not (isinstance(lr, Tensor) and lr.numel() == 1 and not lr.is_complex()):
            error = ValueError if isinstance(lr, Tensor) else TypeError
            raise error(f"lr must be a number or one-element tensor, not {lr!r:.80}")
        if not 0.0 <= float(lr) < math.inf:
            raise ValueError(f"lr must be finite and at least 0, not {lr}")
        if not isinstance(options.get("transfer", True), bool):
            raise TypeError(f"transfer of a parameter group must be True or False, not {options['transfer']!r:.80}")
        self._base.check(options)
        self._check_task(options)

    def _membership(self) -> list[Any]:
        """Which parameters are in which group, and whose head it is: what the buffers are made for."""
        return [
            (group.get("task"), *map(id, group["params"]))
            if isinstance(group, dict) and isinstance(group.get("params"), list)
            else None
            for group in self.param_groups
        ]

    def _read_shown(self) -> None:
        """Takes in what others did since the last step to the state, and to the lists in ``param_groups``: a parameter
        that was taken out is trained no more (its state waits for it), one that was put in is trained from now on, with
        the options of its group and the defaults.

        Raises TypeError or ValueError, before anything is changed, for what ``add_param_group`` would refuse.
        """
        if self._membership() == self._members:
            self._read_state()
            return
        self._check_groups()
        for _, p in self._parameters():
            if p not in self._attached and p in self.state:
                self.state[p] = cloned(self.state[p])  # it may be taken over from another parameter, views and all
        self._read_state()
        self._rebuild()

    def _check_groups(self) -> None:
        listed = [self._checked_group(group) for group in self.param_groups]
        parameters = [p for params in listed for p in params]
        if len(set(map(id, parameters))) < len(parameters):
            raise ValueError("expected every parameter once, got one twice in the parameter groups")
        check_parameters(parameters, None, self._num_rows if self._stacked else None)
        check_memory(parameters)
        for group, params in zip(self.param_groups, listed, strict=True):
            for p in params:
                if p not in self._attached:
                    self._check_entries(self.state.get(p, {}), {**self.defaults, **group}, p)
        for group, params in zip(self.param_groups, listed, strict=True):
            group["params"] = params
            for key, value in self.defaults.items():
                group.setdefault(key, value)

    def _checked_group(self, group: Any) -> list[Tensor]:
        """The parameters of a group that somebody may have changed by hand."""
        if not isinstance(group, dict) or "params" not in group:
            raise TypeError(f'expected a parameter group as a dict with "params", got {group!r:.80}')
        params = group["params"]
        if isinstance(params, set):
            raise TypeError("expected parameters in an ordered collection, got a set")
        self._check_options({**self.defaults, **group})
        return [params] if isinstance(params, Tensor) else list(params)

    def _check_task(self, options: dict[str, Any]) -> None:
        """Raises ValueError or TypeError unless the group's ``task`` is a task of this optimizer, or none."""
        task = options.get("task")
        if task is None:
            return
        if self._task_rows == 1:
            raise ValueError(
                f"task={task!r} in a parameter group: this optimizer keeps one gradient for all parameters"
            )
        if not isinstance(task, int) or isinstance(task, bool):
            raise TypeError(f"task must be the number of a task, or None for shared parameters, got {task!r}")
        if not 0 <= task < self._task_rows:
            raise ValueError(f"task must be in 0 .. {self._task_rows - 1}, not {task}")

    def _parameters(self) -> list[tuple[dict[str, Any], Tensor]]:
        return [(group, p) for group in self.param_groups for p in group["params"]]

    # ------------------------------------------------------------------ data parallelism
    def _description(self) -> dict[str, Any]:
        """What has to be the same on all ranks when the optimizer is made, but for the parameter groups."""
        return {
            "optimizer": type(self).__name__,
            "num_subproblems": self._num_rows,
            "stacked": self._stacked,
            "base": repr(self._base),
            "ema": self._ema,
        }

    def _share_draws(self) -> None:
        """Makes the random numbers of all ranks those of the first."""

    def _call(self, name: str) -> dict[str, Any]:
        """What has to be the same on all ranks when they make this call."""
        return {
            "call": name,
            "frozen parameters": [index for index, (_, p) in enumerate(self._parameters()) if not p.requires_grad],
            "dtypes": [str(flat.dtype) for flat in self._flat],
            "parameter group": [dict(zip(FIELDS, row, strict=True)) for row in self._options],
        }

    def _works_in_wrapper(self) -> bool:
        """True if DistributedDataParallel around the model averages all gradients that a step uses."""
        return False

    def _warn_if_alone(self) -> None:
        if self._alone and not torch.compiler.is_compiling():
            self._alone = False
            text = warning_of_drift(None, type(self).__name__, wrapper=self._works_in_wrapper())
            if text is not None:
                self._warn_once("ranks", text, stacklevel=4)

    # ------------------------------------------------------------------ buffers
    def _build(self) -> None:
        """Makes the flat buffers, one for each dtype (and another one for heads), and the parameters views of them."""
        kinds: dict[tuple[torch.dtype, bool], list[tuple[int, Tensor]]] = {}
        for index, group in enumerate(self.param_groups):
            for p in group["params"]:
                kinds.setdefault((p.dtype, group.get("task") is not None), []).append((index, p))
        row = 0 if self._stacked else self._now.row
        self._flat = [
            FlatParameters(
                [p for _, p in members],
                self._num_rows,
                num_tasks=1 if head else self._task_rows,
                stacked=self._stacked,
                row=row,
            )
            for (_, head), members in kinds.items()
        ]
        self._groups = [[index for index, _ in members] for members in kinds.values()]
        self._tables: list[tuple[Tensor, Tensor]] = []  # float64 [groups, fields], and each segment's group
        for flat, groups in zip(self._flat, self._groups, strict=True):
            self._skipped = self._skipped.to(flat.device)
            table = torch.zeros(len(self.param_groups), len(FIELDS), dtype=torch.float64, device=flat.device)
            self._tables.append((table, torch.tensor(groups, dtype=torch.int64, device=flat.device)))
        self._skips.to(self._skipped.device)
        self._late_flags: dict[str, LateFlags] = {}
        self._options: list[list[float]] = []  # of each group, as the tables have them
        self._built = True
        self._members = self._membership()
        self._start_copies()
        self._attach_rows()

    def _rebuild(self) -> None:
        """Makes the buffers anew after a change of the parameters' number, dtype or device; keeps what was in them.

        The parameters keep their values and with them their versions: a graph that is alive stays valid.
        """
        everyone = {p: None for flat in self._flat for p in flat.parameters} | {p: None for _, p in self._parameters()}
        with torch.autograd._unsafe_preserve_version_counter(tuple(everyone)):
            self._rebuild_buffers()

    def _rebuild_buffers(self) -> None:
        before = {p: (flat, segment) for flat in self._flat for segment, p in enumerate(flat.parameters)}
        present = {p: p.data for _, p in self._parameters()}
        kept = self._export_state()
        self._build()
        self._import_state(kept)
        row = 0 if self._stacked else self._now.row
        for flat in self._flat:
            for segment, p in enumerate(flat.parameters):
                p.data = present[p]  # of the row that they show, the parameters themselves are the truth
                if p in before:
                    flat.take_gradients(segment, *before[p])
            flat.adopt(row)
            flat.activate(row)
        for p in before.keys() - present.keys():  # no longer ours: tensors of its own, out of the old buffer
            p.data = p.data.clone()
            if p in self.state:
                self.state[p] = cloned(self.state[p])

    def _synchronize(self) -> list[FlatParameters]:
        """The buffers, with what was done to the parameters since the last step."""
        row = 0 if self._stacked else self._now.row
        if torch.compiler.is_compiling():
            for flat in self._flat:
                flat.adopt_rounded(row)
            return self._flat
        self._read_shown()
        replaced = [flat for flat in self._flat if flat.replaced(row)]
        for flat in replaced:
            if shapes := flat.reshaped():
                raise ValueError(
                    f"a parameter of shape {shapes[0]} now has shape {shapes[1]}: make a new optimizer for the model"
                )
        if any(flat.moved() for flat in replaced):
            parameters = [p for _, p in self._parameters()]
            check_parameters(parameters, None, self._num_rows if self._stacked else None)
            check_memory(parameters)
            self._rebuild()
        else:
            for flat in replaced:
                flat.adopt(row)
                flat.activate(row)
        for flat in self._flat:
            flat.adopt_rounded(row)
        return self._flat

    def _refresh_segments(self) -> None:
        """Writes the hyper-parameters of the groups to the kernel's tables, if they have changed."""
        options, lrs = [], []
        for index, group in enumerate(self.param_groups):
            fields = self._base.fields(group)
            lr = group["lr"]
            if isinstance(lr, Tensor):  # stays on its device: no host value to wait for or to compile for
                lrs.append((index, lr))
                lr = 0.0
            fields.update(lr=lr, transfer=group.get("transfer", True), ema=self._ema or 0.0)
            options.append([fields.get(name, 0.0) for name in FIELDS])
        changed = options != self._options or torch.compiler.is_compiling()
        if not changed and not lrs:
            return
        moved = [row[TRANSFER] for row in options] != [row[TRANSFER] for row in self._options]
        for flat, groups, (table, group_of) in zip(self._flat, self._groups, self._tables, strict=True):
            if changed:
                table.copy_(to_device(torch.tensor(options, dtype=torch.float64), flat.device))
            for index, lr in lrs:
                table[index, LR].fill_(lr.reshape(()))
            flat.segments.copy_(table[group_of])
            if moved:
                flat.set_transfer([bool(options[index][TRANSFER]) for index in groups])
        self._options = options

    # ------------------------------------------------------------------ the step
    def _find_nonfinite(self, losses: Tensor | None) -> Tensor:
        """float32 [K], NONFINITE where the gradients or losses [K, T] of a row are infinite or NaN."""
        found = self._with_infinities(torch.zeros(self._num_rows, dtype=torch.float32, device=self._skipped.device))
        self._mark_nonfinite(found)
        return self._with_losses(found, losses)

    def _mark_nonfinite(self, found: Tensor) -> None:
        """Sets found[k] = 1 where a gradient that the step of row k would use is infinite or NaN."""
        for flat in self._flat:
            flat.find_nonfinite(found)

    @staticmethod
    def _with_losses(found: Tensor, losses: Tensor | None) -> Tensor:
        return found if losses is None else torch.where(losses.isfinite().all(dim=1), found, float(NONFINITE))

    def _rows_to_skip(self, found: Tensor) -> Tensor:
        return found.amax().expand_as(found).contiguous() if self._skip_all else found

    def _nothing_left(self, skipped: Tensor) -> bool:
        """True if there is no row left to update; where the host cannot know without waiting, the kernel finds out."""
        return self._host_knows(skipped) and bool(skipped.all())

    @staticmethod
    def _host_knows(tensor: Tensor) -> bool:
        """True if reading the tensor here makes nobody wait, neither a compiler nor a device."""
        return tensor.device.type == "cpu" and not torch.compiler.is_compiling()

    def _combination(self, index: int) -> tuple[Tensor, Tensor | None]:
        """Gradients [K, T, P] of this buffer and the weights, float64 [K, T], that combine them (None where T = 1)."""
        return self._flat[index].grads, None

    def _active(self, index: int) -> Tensor | None:
        """bool [K, S], the tensors of this buffer that are updated; None: all."""
        return self._flat[index].active()

    def _divisor(self, device: torch.device) -> Tensor | None:
        """float32 [1], what the gradients are divided by in the step, or None."""
        return self._of_all_ranks(self._factor(device), device)

    def _of_all_ranks(self, factor: Tensor | None, device: torch.device) -> Tensor | None:
        """The divisor of sums over the ranks, from that of one rank's gradients."""
        if self._ranks is None:
            return factor
        size = torch.full((1,), float(self._ranks.size), dtype=torch.float32, device=device)
        return size if factor is None else size * factor

    def _joint(self, losses: Tensor) -> Tensor:
        """The mean over the ranks."""
        return losses if self._ranks is None else self._ranks.mean(losses)

    def _apply(self, skipped: Tensor, mixes: Iterable[Tensor | None], order: Order) -> None:
        """The fused step of every buffer; mixes: for each of them M [K, K] or [S, K, K], or None."""
        rule = self._base.rule(self.param_groups)
        moments_of = [self._base.moments(group) for group in self.param_groups]
        names = {name for moments in moments_of for name in moments.values()}
        combinations = [self._combination(index) for index in range(len(self._flat))]
        if self._max_norm is not None:
            combinations = self._clipped(combinations, self._max_norm)
        for index, (flat, mix) in enumerate(zip(self._flat, mixes, strict=True)):
            first, second, largest = (
                flat.buffer(name) if name in names else None for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
            )
            low = None if flat.values is flat.theta else flat.values
            grads, weights = combinations[index]
            step_(
                flat.theta, first, second, largest, flat.buffers.get("ema"), low, flat.step, flat.constants, grads,
                weights, mix, flat.segments, flat.chunks, self._active(index), self._divisor(flat.device), skipped,
                rule=rule, order=order,
            )  # fmt: skip
            flat.mark_changed()
        self._attach_state(moments_of)

    def _clipped(
        self, combinations: Sequence[tuple[Tensor, Tensor | None]], max_norm: float
    ) -> list[tuple[Tensor, Tensor | None]]:
        """The combined gradients with weights that shorten those of each row to this length, all tensors as one vector.

        As ``torch.nn.utils.clip_grad_norm_``, but of each of the K subproblems on its own, and exactly to max_norm.
        """
        rows, squares = [], self._skipped.new_zeros(self._num_rows, dtype=torch.float64)
        for flat, (grads, weights) in zip(self._flat, combinations, strict=True):
            combined = grads
            if weights is not None:
                combined = torch.zeros_like(grads[:, :1])
                combine_(combined[:, 0], grads, weights, flat.chunks)
            squares = squares + torch.linalg.vector_norm(combined[:, 0], dim=1, dtype=torch.float64).square()
            rows.append(combined)
        divisor = self._divisor(self._skipped.device)
        norm = squares.sqrt() if divisor is None else squares.sqrt() / divisor.double()
        self._now.grad_norm = norm
        factors = torch.where(norm > max_norm, max_norm / norm, 1.0).unsqueeze(1)
        return [(combined, factors) for combined in rows]

    @property
    def grad_norm(self) -> Tensor | None:
        """float64 [K]: how long the combined gradient of each subproblem was in the last step, before ``max_norm``
        shortened it; None without ``max_norm``, which measures it."""
        return None if self._now.grad_norm is None else self._now.grad_norm.clone()

    def _warn_once(self, key: str, text: str, *, stacklevel: int = 3) -> None:
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(text, UserWarning, stacklevel=stacklevel)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets all gradients, those of all subproblems."""
        super().zero_grad(set_to_none)
        for flat in self._flat:
            flat.forget_gradients()
