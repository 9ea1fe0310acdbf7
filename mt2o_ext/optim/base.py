"""The common ground of all optimizers: torch.optim.Optimizer over flat buffers."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..base import BaseRule
from ..checks import check_count, check_positive, check_real
from ..device import host_knows
from ..gradients.options import check_given, check_ways_of_shards
from ..gradients.parameters import check_memory, check_parameters
from ..gradients.passes import Backward, Pass, check_backward
from ..gradients.skipped import Refuser, with_losses
from ..gradients.table import GradientTable
from ..gradients.tasks import Batch, TaskGradients
from ..ops import FIELDS, Order
from ..ranks import Ranks, as_ranks, check_not_wrapped, describe, warning_of_draws, warning_of_drift
from ..sharding import is_sharded, local_of
from ..weighting import Needs
from ..weighting.refusal import Outcome
from .amp import Scaling
from .buffers import Buffers
from .groups import about_unreached, check_options, listed_of
from .history import Recorder, StepHistory
from .keywords import check_keywords
from .now import Now
from .saved import SavedState
from .skips import SkipReport
from .state import StateViews, cloned
from .step import StepInputs, apply, clip

__all__ = ["FlatOptimizer"]


class FlatOptimizer(SavedState):
    """Parameter groups, what others do to them and to the state, and the fused step.

    Subclasses make the values of a step: gradients, weights, transfer.

    Args:
        params: parameters, named parameters, or parameter groups, as for ``torch.optim``.
        defaults: options of a group.
        base: the base rule.
        buffers: sizes of the flat buffers, not built yet.
        tasks: the way from task gradients to one, or None.
        heads_of: the number of tasks whose heads groups with ``task`` may be; None: groups have none.
        ema: decay of a running average of theta, or None.
        copies: names of buffers that begin as copies of theta.
        max_norm: the length that combined gradients are shortened to, or None.
        skip_all: skip the step of all subproblems where one has a non-finite gradient (else that subproblem's only).
        look_for_nonfinite: read gradients for that once more than the step does, where nothing else tells.
        refusers: who may refuse a step for what is finite.
        history: the number of steps that are recorded.
        process_group: data parallelism; see :mod:`mt2o_ext.ranks`.
        backward: a trainer's backward, or None; see :class:`mt2o_ext.gradients.passes.Pass`.
    """

    _num_tasks: int
    _needs_whole: str | None = None  # why parameters must not be sharded; None: they may be
    _step_supports_amp_scaling = True  # GradScaler leaves the division to the step, see `Scaling`

    def __new__(cls, *args: Any, **options: Any) -> FlatOptimizer:
        check_keywords(cls, options)
        check_given(args[0] if args else options.get("params"))
        return super().__new__(cls)

    def __init__(
        self,
        params: Any,
        defaults: dict[str, Any],
        base: BaseRule,
        buffers: Buffers,
        *,
        tasks: TaskGradients | None = None,
        heads_of: int | None = None,
        ema: float | None = None,
        copies: Sequence[str] = (),
        max_norm: float | None = None,
        skip_all: bool = True,
        look_for_nonfinite: bool = True,
        refusers: Sequence[Refuser] = (),
        history: int = 0,
        process_group: Any = None,
        backward: Backward | None = None,
    ) -> None:
        check_count("history", history, 0)
        if ema is not None and check_real("ema", ema, 0.0, 1.0) == 1.0:
            raise ValueError("expected ema < 1, got 1.0: choose a smaller decay, 0.98, say, or None for no average")
        self._max_norm = None if max_norm is None else check_positive("max_norm", max_norm)
        self._base = base
        self._buffers = buffers
        self._tasks = tasks
        self._pass = Pass(check_backward(backward))
        self._pass.check_sequential(self._batched())
        self._heads_of = heads_of
        self._ema = ema
        self._copies = list(copies)
        self._views = StateViews(buffers, base, copies)
        self._look_for_nonfinite = look_for_nonfinite
        self._report = SkipReport(buffers.num_rows, buffers.exchange, skip_all=skip_all, refusers=refusers)
        self._now = Now(batch=self._new_batch())
        self._step_recorder = Recorder(history, buffers.share.own.start) if history > 0 else None
        self._ranks = as_ranks(process_group)
        self._said = [process_group]  # of data parallelism, until it was looked into
        super().__init__(params, defaults)
        self._ranks = as_ranks(process_group, [p for _, p in self._parameters()])
        check_memory(self._held_parameters())
        for ranks in self._others():
            ranks.agree({**self._description(), **describe(self.param_groups)})
            ranks.share_parameters_([p for _, p in self._parameters()])
            self._share_draws(ranks)
        self._build()

    def _new_batch(self) -> Batch:
        return Batch(losses=[None] * (self._buffers.num_rows if self._buffers.keeps_rows else 1))

    @property
    def _row(self) -> int:
        """The row whose values the parameters show (of a bank, the first of all)."""
        return 0 if self._buffers.stacked else self._now.row

    # ------------------------------------------------------------------ backward passes
    def _batched(self) -> str | None:
        """The option that leaves no backward pass to a trainer, or None."""
        return 'collect="batched"' if self._tasks is not None and self._tasks.collecting == "batched" else None

    def _way(self, backward: Backward | None, retain_graph: bool) -> Pass:
        """The backward passes of one call, which may bring a function of its own."""
        way = self._pass.of_call(backward, retain_graph)
        way.check_sequential(self._batched())
        return way

    # ------------------------------------------------------------------ parameter groups
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, also after steps: buffers are rebuilt, state is kept.

        Frozen parameters may be of any kind.  Where an error is raised, nothing has been changed.

        Raises:
            TypeError: for parameters of another dtype than float32, float64, bfloat16 and float16, or not dense; and
                for options of the wrong kind.
            ValueError: for parameters on another device than the others, without the leading dimension K (if stacked),
                sharing memory with another one or given twice; and for options out of range.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"expected a parameter group as a dict, got {type(param_group).__name__}")
        group = dict(param_group)
        group["params"] = listed_of(group)
        tensors = [p[1] if isinstance(p, tuple) else p for p in group["params"]]
        self._check_tensors(tensors, next(iter(self._held_parameters()), None))
        self._check_options({**self.defaults, **group})
        if self._buffers.built:
            self._read_shown()
            known = set(self._buffers.parameters())
            check_memory([*known, *(p for p in tensors if self._is_held(p) and p not in known)])
            self._check_added(tensors)
            for ranks in self._others():
                ranks.agree({"call": "add_param_group()", **describe([{**self.defaults, **group, "params": tensors}])})
                ranks.share_parameters_(tensors)
        super().add_param_group(group)
        if self._buffers.built:
            self._rebuild()

    def _check_options(self, options: dict[str, Any]) -> None:
        check_options(options, self._base, self._heads_of)

    def _check_tensors(self, tensors: Sequence[Any], other: Tensor | None = None) -> None:
        """Checks that these can be optimized, beside another one.

        Raises:
            TypeError: for anything but dense tensors of a dtype that is supported.
            ValueError: for tensors that do not fit the optimizer.
        """
        num_rows = self._buffers.num_rows if self._buffers.stacked else None
        of_any_kind = [p for p in tensors if isinstance(p, Tensor) and not self._is_held(p)]
        frozen = set(map(id, of_any_kind))
        held = [p for p in tensors if id(p) not in frozen]
        check_parameters(held, None if other is None else other.device, num_rows, whole=self._needs_whole)
        if self._tasks is not None:
            check_ways_of_shards(held, self._tasks.weigher.weighting, collect=self._tasks.collecting)
        if len(set(map(id, tensors))) < len(tensors):
            raise ValueError("expected every parameter once, got one twice in the same group")

    def _check_added(self, tensors: Sequence[Tensor]) -> None:
        """Checks that sharded parameters come to others of the same ranks.

        Raises:
            ValueError: for sharded ones where none was when the optimizer was made, or on a larger mesh.
        """
        if not any(map(is_sharded, tensors)):
            return
        own = [p for _, p in self._parameters()]
        before, after = as_ranks(None, own), as_ranks(None, [*own, *tensors])
        if before is None or after is None or not before.same_as(after):
            raise ValueError(
                "expected parameters that lie where the others do, got sharded ones of other ranks: make one optimizer "
                "for all of them, behind fully_shard or parallelize_module"
            )

    def _is_held(self, p: Tensor) -> bool:
        """True if a parameter needs a place in the buffers: it is trained, or was."""
        return p.requires_grad or bool(self.state.get(p))

    def _parameters(self) -> list[tuple[dict[str, Any], Tensor]]:
        return [(group, p) for group in self.param_groups for p in group["params"]]

    def _held_parameters(self) -> list[Tensor]:
        return [p for _, p in self._parameters() if self._is_held(p)]

    # ------------------------------------------------------------------ what others did since the last step
    def _read_shown(self) -> None:
        """Takes in what was done to the state, and to the lists in ``param_groups``.

        A parameter that was taken out is trained no more (its state waits for it), one that was put in or thawed is
        trained from now on.

        Raises:
            TypeError: as `add_param_group`, before anything is changed.
            ValueError: as `add_param_group`, before anything is changed.
        """
        if self._buffers.is_of(self.param_groups, self._is_held):
            self._views.read(self.state, self.param_groups)
            return
        self._complete_groups()
        for _, p in self._parameters():
            if not self._views.holds(p) and p in self.state:
                self.state[p] = cloned(self.state[p])  # it may be taken over from another parameter, views and all
        self._views.read(self.state, self.param_groups)
        self._rebuild()

    def _complete_groups(self) -> None:
        """Checks groups that somebody may have changed by hand, and completes them."""
        listed = [listed_of(group) for group in self.param_groups]
        for group in self.param_groups:
            self._check_options({**self.defaults, **group})
        parameters = [p for params in listed for p in params]
        if len(set(map(id, parameters))) < len(parameters):
            raise ValueError("expected every parameter once, got one twice in the parameter groups")
        self._check_tensors(parameters)
        check_memory([p for p in parameters if self._is_held(p)])
        for group, params in zip(self.param_groups, listed, strict=True):
            for p in params:
                if not self._views.holds(p):
                    self._views.check_entries(self.state.get(p, {}), {**self.defaults, **group}, p)
        for group, params in zip(self.param_groups, listed, strict=True):
            group["params"] = params
            for key, value in self.defaults.items():
                group.setdefault(key, value)

    def _synchronize(self) -> None:
        """Takes in what was done to groups, state and parameters since the last step."""
        flats, row = self._buffers.flats, self._row
        if not torch.compiler.is_compiling():
            self._read_shown()
            flats = self._buffers.flats
            replaced = [flat for flat in flats if flat.replaced(row)]
            for flat in replaced:
                if shapes := flat.reshaped():
                    raise ValueError(
                        f"a parameter of shape {shapes[0]} now has shape {shapes[1]}: make a new optimizer for the "
                        "model"
                    )
            if any(flat.moved() for flat in replaced):
                self._check_tensors([p for _, p in self._parameters()])
                check_memory(self._held_parameters())
                self._rebuild()
                flats = self._buffers.flats
            else:
                for flat in replaced:
                    flat.adopt(row)
                    flat.activate(row)
        for flat in flats:
            flat.adopt_shards(row)
            flat.adopt_rounded(row)

    # ------------------------------------------------------------------ buffers
    def _build(self) -> None:
        """Makes the flat buffers, and the parameters and the state views of them."""
        buffers = self._buffers
        buffers.build(self.param_groups, self._is_held, self._row)
        self._report.to(buffers.device)
        if self._tasks is not None:
            self._tasks.bind([flat.tasks for flat in buffers.flats], buffers.tasks)
        self._views.start_copies()
        self._views.attach_rows(self.state, self.param_groups)

    def _rebuild(self) -> None:
        """Makes the buffers anew after a change of the parameters' number, dtype or device; keeps what was in them.

        The parameters keep their values and with them their versions: a graph that is alive stays valid.
        """
        everyone = dict.fromkeys([*self._buffers.parameters(), *(p for _, p in self._parameters())])
        with torch.autograd._unsafe_preserve_version_counter(tuple(everyone)):
            self._rebuild_buffers()

    def _rebuild_buffers(self) -> None:
        before = {p: (flat, segment) for flat in self._buffers.flats for segment, p in enumerate(flat.parameters)}
        present = {p: local_of(p).clone() if is_sharded(p) else p.data for _, p in self._parameters()}
        kept = {p: dict(state) for p, state in self.state.items() if isinstance(p, Tensor)}
        self._build()
        self._views.import_(self.state, kept, self.param_groups)
        for flat in self._buffers.flats:
            for segment, p in enumerate(flat.parameters):
                if is_sharded(p):  # of the row that they show, the parameters themselves are the truth
                    local_of(p).copy_(present[p])
                else:
                    p.data = present[p]
                if p in before:
                    old, place = before[p]
                    flat.tasks.take_over(segment, old.tasks, place)
                    flat.combined.take_over(segment, old.combined, place)
            flat.adopt(self._row)
            flat.activate(self._row)
        for p in before.keys() - set(self._buffers.parameters()):  # tensors of its own, out of the old buffer
            if not is_sharded(p):
                p.data = p.data.clone()
            if p in self.state:
                self.state[p] = cloned(self.state[p])

    # ------------------------------------------------------------------ other ranks
    def _others(self) -> list[Ranks]:
        """The ranks of data parallelism, and those that have other subproblems, as far as there are any."""
        return [ranks for ranks in (self._ranks, self._buffers.peers) if ranks is not None]

    def _description(self) -> dict[str, Any]:
        """Options that have to be the same on all ranks when the optimizer is made, but for the parameter groups."""
        own: dict[str, Any] = {
            "optimizer": type(self).__name__,
            "num_tasks": self._num_tasks,
            "num_subproblems": self._buffers.share.total,
            "stacked": self._buffers.stacked,
            "base": repr(self._base),
            "ema": self._ema,
        }
        if self._tasks is not None:
            own |= {"heads": self._tasks.heads, "collect": self._tasks.collecting}
            own |= self._tasks.weigher.description()
        return own

    def _share_draws(self, ranks: Ranks) -> None:
        """Makes the random numbers of all these ranks those of the first."""
        if self._tasks is not None and ranks is self._ranks:  # of other subproblems they are others
            self._tasks.weigher.share(ranks)

    def _call(self, name: str) -> dict[str, Any]:
        """Facts that have to be the same on all ranks when they make this call."""
        assert self._ranks is not None
        calls = {f"of subproblem {k}": self._ranks.calls.get(row, 0) for row, k in enumerate(self._buffers.share.own)}
        facts: dict[str, Any] = {"call": name, "number of backward calls": calls}
        if self._tasks is not None:
            facts |= self._tasks.weigher.progress()
        return facts | self._facts()

    def _facts(self) -> dict[str, Any]:
        """Those of them that do not depend on the subproblems."""
        return {
            "frozen parameters": [index for index, (_, p) in enumerate(self._parameters()) if not p.requires_grad],
            "dtypes": [str(flat.dtype) for flat in self._buffers.flats],
            "parameter group": [dict(zip(FIELDS, row, strict=True)) for row in self._buffers.options],
        }

    def _works_in_wrapper(self) -> bool:
        """True if DistributedDataParallel around the model averages all gradients that a step uses."""
        return False

    def _look_for_ranks(self) -> None:
        """Looks once, at the first gradients, whether other ranks get them as they should, of the same parameters."""
        if not self._said or torch.compiler.is_compiling():
            return
        said, wrapper = self._said[0], self._works_in_wrapper()
        self._said.clear()
        name, vertices = type(self).__name__, self._buffers.vertices
        if said is False and not wrapper:
            what = f"the gradients of several tasks that {name} keeps apart"
            if vertices is not None and self._tasks is None:
                what = f"the gradients of {name} at random points"
            check_not_wrapped(self._buffers.parameters(), what, "" if vertices is None else ', or take front="rows"')
        text = None if self._ranks is not None else warning_of_drift(said, name, wrapper=wrapper)
        if text is None and vertices is not None and vertices.own_generator:
            text = warning_of_draws(said)
        if text is not None:
            self._warn_once("ranks", text, stacklevel=4)
        if self._ranks is not None:
            self._ranks.compare_values([p for _, p in self._parameters()])

    def _joint(self, losses: Tensor) -> Tensor:
        """The mean over the ranks."""
        return losses if self._ranks is None else self._ranks.mean(losses)

    def _of_all_ranks(self, factor: Tensor | None) -> Tensor | None:
        """The divisor of sums over the ranks, from that of one rank's gradients."""
        if self._ranks is None or self._ranks.summed == 1:
            return factor
        size = torch.full((1,), float(self._ranks.summed), dtype=torch.float32, device=self._buffers.device)
        return size if factor is None else size * factor

    # ------------------------------------------------------------------ the step
    def _find_nonfinite(self, tables: Iterable[GradientTable], losses: Tensor | None, scaling: Scaling) -> Tensor:
        """float32 [K], NONFINITE where the gradients or losses [K, T] of a row are infinite or NaN."""
        found = scaling.with_infinities(self._report.nothing_found())
        if self._look_for_nonfinite:
            for table in tables:
                table.find_nonfinite(found)
        return with_losses(found, losses)

    def _without_gradients(self) -> str:
        """The words for a step without any gradient."""
        if self._now.batch.constant:
            return (
                "step() needs gradients, but no loss of the loop over tasks() had a graph: were they detached, or "
                "computed under no_grad?"
            )
        if not self._now.batch.begun:
            return "step() needs gradients: call optimizer.backward(losses) first, or step(closure)"
        return (
            "step() needs gradients, but backward() reached none of this optimizer's parameters: were they replaced in "
            "the model since it was made (by fully_shard, load_state_dict(assign=True), another model)? Then make a "
            "new optimizer"
        )

    def _apply(self, inputs: Sequence[StepInputs], order: Order = Order.CONSENSUS) -> None:
        """The fused step of every buffer, and its traces in the state."""
        if self._max_norm is not None:
            inputs, self._now.grad_norm = clip(self._buffers, inputs, self._max_norm)
        apply(self._buffers, self._base, self.param_groups, inputs, order)
        moments = [self._base.moments(group) for group in self.param_groups]
        self._views.attach(self.state, moments, [given.reached for given in inputs])
        if not torch.compiler.is_compiling():
            torch.clear_autocast_cache()  # of the parameters as they were

    def _count_skipped(self, found: Tensor, skipped: Tensor, scaling: Scaling, early: Outcome | None = None) -> None:
        scaling.tell(self, found, self._buffers.peers)
        weights, finite = (None, None) if early is None else (early.weights, early.took_part)
        self._report.count(found, skipped, expected=scaling.under_scaler, weights=weights, finite=finite)

    def _record_step(self, losses: Tensor | None, skipped: Tensor, transferred: Tensor | None = None) -> None:
        """losses: float64 [K, T] of the step, or None.  transferred: float64 [K], or None."""
        if self._step_recorder is not None:
            weights, batch = self._now.weights, self._now.batch
            norm = None if self._max_norm is None else self._now.grad_norm
            vertices = self._buffers.vertices
            points = None if vertices is None else vertices.own
            self._step_recorder.add(
                losses=losses, weights=weights, gram=batch.gram, grad_norm=norm, skipped=skipped, points=points,
                transferred=transferred,
            )  # fmt: skip

    def _recorded_steps(self) -> StepHistory:
        if self._step_recorder is None:
            raise RuntimeError(
                f"expected {type(self).__name__}(..., history=1000), say, for history(), got an optimizer that records "
                "nothing"
            )
        return self._step_recorder.history()

    # ------------------------------------------------------------------ what weightings learn from
    def _last_weights(self) -> Tensor | None:
        return None if self._now.weights is None else self._now.weights.clone()

    def _await_feedback(self, losses: Tensor | None, skipped: Tensor) -> None:
        """losses: float64 [K, T] of the step, or None."""
        if self._tasks is not None and Needs.FEEDBACK in self._tasks.weigher.weighting.needs:
            missed = skipped.unsqueeze(1) != 0
            self._tasks.weigher.await_feedback(None if losses is None else torch.where(missed, torch.nan, losses))

    def _learn_from(self, losses: Tensor) -> None:
        """losses: float64, those of the last mini-batch again, after the step."""
        assert self._tasks is not None
        if self._ranks is not None:
            self._ranks.agree(self._call("feedback()"))
        self._tasks.weigher.learn(self._joint(losses))

    def _check_scaler_of_ranks(self, scaling: Scaling) -> None:
        for ranks in self._others():
            if not ranks.of_shards:  # of which the scaler itself asks all ranks
                scaling.check_shared(ranks.argument)

    @property
    def grad_norm(self) -> Tensor | None:
        """float64 [K]: how long the combined gradient of each subproblem (of each vertex) was in the last step.

        That is before ``max_norm`` shortened it; None without ``max_norm``, which measures it.
        """
        return None if self._now.grad_norm is None else self._now.grad_norm.clone()

    @property
    def skipped_steps(self) -> Tensor:
        """int64 [K]: how many steps of each subproblem were skipped.

        A step is skipped for an infinite or NaN gradient or loss, and for a loss that the weighting or the
        scalarization is not defined for.
        """
        self._report.warn(wait=True)
        return self._report.counts.clone()

    def _name_unreached(self, tables: Sequence[GradientTable]) -> None:
        """Warns at the first gradients of trainable parameters that no loss has a gradient for."""
        if torch.compiler.is_compiling() or "unreached" in self._now.warned:
            return
        self._now.warned.add("unreached")
        alone = self._buffers.peers is None  # else a head may be of a task that subproblems elsewhere prefer
        groups = [group for group in self.param_groups if alone or group.get("task") is None]
        if (text := about_unreached(groups, tables)) is not None:
            warnings.warn(text, UserWarning, stacklevel=5)

    def _warn_once(self, key: str, text: str, *, stacklevel: int = 3) -> None:
        if key not in self._now.warned:
            self._now.warned.add(key)
            warnings.warn(text, UserWarning, stacklevel=stacklevel)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets all gradients, those of all subproblems.

        Raises:
            RuntimeError: inside of a loop over tasks(), where it would drop the tasks before.
        """
        if self._now.between_tasks:
            raise RuntimeError(
                "expected zero_grad() before or after the loop over tasks(), got it inside, where it would drop the "
                "gradients of the tasks before: leave it out, because step() uses the gradients up"
            )
        self._clear(set_to_none)

    def _clear(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        self._forget()

    def _forget(self) -> None:
        """Drops the gradients that are kept, and what was learned with them and was for no step yet."""
        self._buffers.forget_gradients()
        self._now.batch = self._new_batch()
        if self._ranks is not None:
            self._ranks.calls.clear()
        if self._tasks is not None:
            self._tasks.weigher.forget()


def nothing_left(skipped: Tensor) -> bool:
    """True if there is no row left to update; where the host cannot know without waiting, the kernel finds out."""
    return host_knows(skipped) and all(skipped.tolist())
