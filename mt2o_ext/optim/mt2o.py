"""MT2O (reconstructed): K subproblems of one multi-task problem, trained together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..base import AdamW, BaseRule, as_base_rule
from ..checks import check_function
from ..gradients.losses import check_losses, check_running_statistics
from ..gradients.passes import Backward, Pass, scaler_in_use
from ..gradients.table import check_dense
from ..gradients.weigher import undone_on_error
from ..preferences import check_preferences
from ..ranks import Ranks, together
from ..scalarization import Linear, Scalarization, as_scalarization
from ..transfer.moments import Moments
from ..weighting import Weighting, as_weighting
from ..weighting.judging import as_table
from .amp import Scaling
from .asked import Asked, Transfer, listed
from .base import nothing_left
from .branch import branched
from .groups import listed_of
from .history import StepHistory
from .mesh_options import check_copies
from .mesh_step import met, share_starts
from .model_buffers import ModelBuffers
from .mt2o_backward import SubproblemBackward, SubproblemLosses, about_statistics, run_closure
from .mt2o_options import Front, Inner, check_equal_slices, check_group, check_plain, pieces_of
from .mt2o_state import Parts
from .mt2o_step import Applying, Round, about_missing_rows, check_present, without_absent
from .step import Plan
from .subproblems import OneModel
from .whole_state import whole_of

__all__ = ["MT2OFused"]

Losses = Tensor | Sequence[Tensor | None]


class MT2OFused(OneModel):
    """Trains models with different trade-offs between T tasks at once; one run returns a Pareto front.

    Multi-task learning is cast as multi-objective optimisation and decomposed by weight vectors w_k into K scalar
    subproblems f_k(theta) = s(w_k, L(theta)).  What is trained for them is chosen by ``front=``.

    On **vertices**, the default, T sets of weights C_t are trained, one for each task, and every point of the simplex
    between them is a model.  A step draws K random points w_k and evaluates the model at each:

        theta_k = sum_t w_kt C_t,                C_t <- C_t - u_t,  u_t = base rule applied to T/K sum_k w_kt grad f_k

    On **rows** K sets of weights are trained, one for each subproblem, and every step may blend them:

        theta_k <- sum_j M_kj theta_j - u_k,     u_k = base rule applied to grad f_k(theta_k)

    Vertices are Pareto Manifold Learning (Dimitriadis et al., ICML 2023) for one point a step; K points side by side
    are ours.  Rows are after MT2O (arXiv 2403.16162), reconstructed: the paper's abstract, the predecessor's published
    code and our own analysis are behind them, not the paper's text.  In our measurements, of two and three tasks,
    vertices had a better front, and had it sooner, than rows with any transfer.

    Either way a step averages gradient noise, so give each subproblem its own mini-batches (:func:`mt2o_ext.repeat`,
    :func:`mt2o_ext.stack`), and try twice the learning rate that independent runs like best, too.

    Three ways to use it:

        losses = optimizer.step(lambda: task_losses(model, *next(stream)))       # calls it once for each subproblem

        for k in optimizer.subproblems():                                        # loops that own backward
            optimizer.backward(task_losses(model, *next(stream)))
        optimizer.step(); optimizer.zero_grad()

        optimizer.backward(task_losses(bank(x), y)); optimizer.step()            # stacked=True, SubproblemBank

    On vertices the model is a random point outside of these loops too, during training and after it.  What you
    evaluate, save or go on with is inside of ``subproblem(k)``, the model at ``preferences[k]``, or of ``at(w)``, that
    at any trade-off; `front` evaluates the K subproblems.

    A task without data in the mini-batch of a subproblem is absent from it: ``None`` (or a loss without a graph) in the
    list.  The subproblem then trains as if there were no such task, with its preferences in the same proportions; where
    it prefers absent tasks only its gradient is zero.  Subproblems may lack different tasks, but not with a weighting.

    Args:
        params: parameters or parameter groups.  A group may set every option of the base rule, and ``transfer=False``
            for tensors that are never blended.
        num_tasks: T.
        num_subproblems: K, the models that `front` shows and, unless ``points`` says otherwise, that a step evaluates.
        lr: learning rate, a float or a one-element tensor; None: that of the base rule (1e-3; 1e-4 of Lion).
        base: ``AdamW()`` (default), ``Adam()`` or ``SGD()`` of this package, with torch.optim's options; or a name.
        preferences: [K, T] weight vectors on the simplex, those of the rows that are trained, or of the points that
            `subproblem` and `front` show; default: evenly spaced (T = 2), Riesz energy (T > 2, which needs K >= T).
        scalarization: how losses and preferences become one loss; :class:`Linear` by default.  Use
            :class:`SmoothTchebycheff` where the front may be non-convex.  None: see ``weighting``.
        weighting: of the task gradients inside each subproblem, CAGrad(), say; None: they add up.  The weighting sees
            the gradients times T and the scalarization's coefficients, and equal preferences; with
            ``scalarization=None`` the gradients as they are, and the subproblem's preferences (the points of the step,
            with ``front="vertices"``).  :class:`mt2o_ext.weighting.PaMaL` is made for that.
            One with which all subproblems would be the same is refused: IMTL-G, say, or Nash-MTL with a scalarization,
            which undo what a loss is multiplied with, and MGDA with None, which knows no preferences.
        heads, collect, generator: with a weighting, as of :class:`WeightedFused`, which also says what it does with
            ``.grad``; groups may then have ``task``.
        transfer: of rows, the rule that gives M: an instance, its name, or any callable ``context -> M`` with rows that
            sum to one.  None: K independent runs.  "auto": :class:`Spectral`.
        order: of rows, "consensus" (above) or "adapt_then_combine": theta <- M (theta - u).
        ema: decay of a running average of all trained parameters (0.98, say), or None.
        max_norm: shortens the gradient of each subproblem to this length (with vertices, that of each vertex), all
            parameters as one vector, before the base rule sees it; ``grad_norm`` tells how long it was.  None: never.
        stacked: the parameters have a leading dimension K (:class:`mt2o_ext.SubproblemBank`).
        buffers: ``model.buffers()`` where the model has BatchNorm or the like: each row keeps its own; of points see
            `update_buffers`.
        front: "vertices" or "rows" (above).  None: rows if ``preferences``, ``transfer``, ``order``, ``moments``,
            ``start`` or ``process_group=False`` is given, a group has ``transfer=False``, the scalarization looks at
            all models at once (FewForMany), the weighting remembers earlier steps (FAMO, DWA, MoCo, ...), or there is
            one task, one subproblem, or more than three tasks, with which vertices have not been measured (unless the
            weighting goes by points, PaMaL); vertices in all other cases, and whenever ``points`` or ``concentration``
            is given.  The ``repr`` and the state dict say which it is.
        points: of vertices, the number of random points of a step; default: ``num_subproblems``.  With points=1 an
            ordinary loop without ``subproblems()`` trains a whole front.
        concentration: of vertices, parameter p of the symmetric Dirichlet distribution that these points are drawn
            from.  1: uniform on the simplex.  Larger: nearer to its centre (the published settings are 1 to 7).
            Smaller: nearer to its corners.  A state dict brings its own.
        warm_up: the number of first steps in which all K models are kept equal: one model is trained, at first.
        start: called as ``start(k)`` with the model at subproblem (or vertex) k, to initialise each differently.  By
            default all start from the model as it is (averaging networks of independent initialisation mixes unrelated
            units).
        moments: of rows, whether transfers blend the base rule's moments too; see :class:`Moments`.
        skip_nonfinite: whose step an infinite or NaN gradient or loss skips, or a loss that the scalarization or the
            weighting is not defined for: "subproblem" (its own) or "all".  On vertices it always skips the whole step,
            in which each point has a part.  False: gradients are not looked at for that, which saves one read of them.
        history: the number of steps that are recorded for `history`; 0: none.
        process_group: data parallelism, as of :class:`WeightedFused`: each subproblem's gradients and losses are
            averaged over the ranks.  (Without a weighting a model in DistributedDataParallel does that as well: then
            pass False.)  Running statistics (``buffers``) are each rank's own.
        subproblem_mesh: the ranks that the K subproblems (of vertices: the points of a step) are divided over, some
            consecutive ones each: a `DeviceMesh` of one dimension, a process group, or True for the default one.
            `subproblems`, closures, losses, `weights`, `history` and `skipped_steps` are those of this rank then,
            `preferences`, `points` and `front` of all; see docs/training_loop.md, also for ``process_group=`` besides.
        backward: a trainer's backward, as of :class:`WeightedFused`.

    Raises:
        TypeError: for options and parameters of the wrong kind, before anything is changed.
        ValueError: for options out of range, options of which some belong to rows and some to vertices, and unsuitable
            parameters, before anything is changed.

    Example:
        >>> p = torch.nn.Parameter(torch.tensor([0.0, 0.0]))
        >>> optimizer = mt2o_ext.MT2OFused([p], num_tasks=2, num_subproblems=3, base="sgd", lr=0.2)
        >>> for _ in range(200):
        ...     losses = optimizer.step(lambda: [(p - 1).square().sum(), (p + 1).square().sum()])  # at 3 random points
        ...
        >>> with optimizer.at([1.0, 0.0]):  # the model for the first task alone
        ...     bool((p - 1).abs().max() < 0.1)
        ...
        True
    """

    def __init__(
        self,
        params: Any,
        *,
        num_tasks: int,
        num_subproblems: int = 5,
        lr: float | Tensor | None = None,
        base: BaseRule | str = AdamW(),  # noqa: B008  (frozen)
        preferences: Tensor | Sequence[Sequence[float]] | None = None,
        scalarization: Scalarization | str | None = Linear(),  # noqa: B008  (frozen)
        weighting: Weighting | str | None = None,
        heads: str = "plain",
        collect: str = "sequential",
        generator: torch.Generator | None = None,
        transfer: Transfer = "auto",
        order: str = "consensus",
        ema: float | None = None,
        max_norm: float | None = None,
        stacked: bool = False,
        buffers: Iterable[Tensor] = (),
        start: Callable[[int], None] | None = None,
        front: Literal["vertices", "rows"] | None = None,
        points: int | None = None,
        concentration: float = 1.0,
        warm_up: int = 0,
        moments: Moments = Moments.KEEP,
        skip_nonfinite: str | bool = "subproblem",
        history: int = 0,
        process_group: Any = None,
        subproblem_mesh: Any = None,
        backward: Backward | None = None,
    ) -> None:
        check_plain(skip_nonfinite, stacked, start)
        params = listed(params)
        scalarization = None if scalarization is None else as_scalarization(scalarization)
        weighting = None if weighting is None else as_weighting(weighting)
        inner = Inner(weighting, heads, collect, generator)
        asked = Asked(
            params, front, num_tasks, num_subproblems, preferences, points, concentration, warm_up, transfer, order,
            moments, stacked, start, process_group, scalarization, weighting,
        )  # fmt: skip
        pieces = pieces_of(asked, inner, subproblem_mesh)
        made, self._objective, tasks, self._blend = pieces
        if made.exchange is not None:
            self._needs_whole = "subproblem_mesh= sends rows of whole parameters to other ranks"
        self._num_tasks = num_tasks
        kept_rows = 1 if stacked or made.vertices is not None else made.num_rows
        self._model_buffers = ModelBuffers(buffers, kept_rows, num_subproblems)
        base = as_base_rule(base)
        super().__init__(
            params,
            {"lr": base.lr if lr is None else lr, **self._of_rows(made), **base.defaults()},
            base,
            made.buffers(1 if tasks is None else num_tasks, stacked=stacked),
            tasks=tasks,
            heads_of=None if tasks is None else num_tasks,
            ema=ema,
            copies=["ema"] * (ema is not None) + ["transfer_base"] * self._blend.rule.relative,
            max_norm=max_norm,
            skip_all=skip_nonfinite == "all" or made.vertices is not None,
            look_for_nonfinite=skip_nonfinite is not False,
            refusers=pieces.refusers,
            history=history,
            process_group=process_group,
            backward=backward,
        )
        self._blend.initial_lr = float(self.param_groups[0].get("initial_lr", self.param_groups[0]["lr"]))
        for ranks in self._others():
            self._model_buffers.share(ranks)
        check_copies(self._ranks, made.exchange)
        if start is not None:
            self._start(start)

    @classmethod
    def branch_from(cls, optimizer: torch.optim.Optimizer, **options: Any) -> MT2OFused:
        """A front that goes on from another optimizer of the same parameters.

        From an optimizer of one model (torch.optim's SGD, Adam or AdamW, or one of this package), every vertex or row
        starts as that model, with its moments, counts of steps and running average.  From a front on vertices to
        another one, the vertices go on with their moments and averages, and points are drawn anew.  From a front on
        vertices to rows (``front="rows"``, ``transfer=`` or another option that asks for them), subproblem k starts as
        the point at ``preferences[k]``, of the running averages if there are any; moments start anew.  Gradients are
        dropped.  Learning rates and other options come from the parameter groups; do not use the old optimizer any
        more.

            trunk = torch.optim.AdamW(model.parameters(), lr=1e-3)      # one model, on the mean of the losses
            ...
            optimizer = MT2OFused.branch_from(trunk, num_tasks=2, num_subproblems=5)

        Args:
            optimizer: of the model.
            options: as of the constructor, but for the parameters.  ``base`` is that of the optimizer by default.

        Raises:
            TypeError: for anything but an optimizer, before anything is changed.
            ValueError: for an optimizer of several subproblems, or of a rule that this package does not have, before
                anything is changed.
            RuntimeError: inside of a context or loop of the optimizer, before anything is changed.
        """
        return branched(cls, optimizer, options)

    @torch.no_grad()
    def _start(self, start: Callable[[int], None]) -> None:
        if self._buffers.vertices is not None:
            self._model.start_vertices(start, self._row)
        else:
            for k in self.subproblems():
                start(k)
                self._synchronize()
        share_starts(self._buffers, self._ranks)
        self._views.start_copies()

    def _share_draws(self, ranks: Ranks) -> None:
        super()._share_draws(ranks)
        if self._buffers.vertices is not None:
            self._buffers.vertices.share(ranks)
        self._blend.share(ranks)

    def _build(self) -> None:
        super()._build()
        self._blend.to(self._buffers.device)

    _family = "mt2o"

    @staticmethod
    def _of_rows(front: Front) -> dict[str, Any]:
        """Options of a group that rows have and vertices have not."""
        return {} if front.vertices is not None else {"transfer": True}

    def __repr__(self) -> str:
        return super().__repr__().replace(" (", f" ({self._parts().named(self._ema)}", 1)

    def _works_in_wrapper(self) -> bool:
        return self._tasks is None and self._buffers.vertices is None

    def _look_for_ranks(self) -> None:
        peers = self._buffers.peers
        if peers is not None and self._said:
            peers.check_wrapper_apart(self._buffers.parameters())
            if self._said[0] is None:
                self._said.clear()
                if (text := peers.warning_of_copies(type(self).__name__)) is not None:
                    self._warn_once("ranks", text, stacklevel=4)
        super()._look_for_ranks()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, as of `FlatOptimizer`; the slices of a bank whose front is on vertices have to be equal.

        Raises:
            TypeError: as of `FlatOptimizer`.
            ValueError: as of `FlatOptimizer`, and for slices that differ: all vertices start as one model.
        """
        if self._buffers.vertices is not None and self._buffers.stacked and isinstance(param_group, dict):
            check_equal_slices(listed_of(param_group), self._buffers.num_rows)
        super().add_param_group(param_group)

    def _check_options(self, options: dict[str, Any]) -> None:
        super()._check_options(options)
        check_group(options, self._tasks, vertices=self._buffers.vertices is not None)

    def _description(self) -> dict[str, Any]:
        whole = {**super()._description(), **self._parts().described()}
        whole.pop("preferences", None)  # of a weighting: those of the subproblems, of which each rank has its own
        return whole

    def _call(self, name: str) -> dict[str, Any]:
        absent = {f"of subproblem {row}": sorted(tasks) for row, tasks in self._now.batch.absent_of.items() if tasks}
        return {**super()._call(name), "number of transfers": self._blend.steps, "tasks without a loss": absent}

    # ------------------------------------------------------------------ losses and gradients
    @property
    def preferences(self) -> Tensor:
        """float64 [K, T]; may be set, on all ranks, to others of this shape.

        Parameters, moments and averages stay as they are: rows go on from where they are to other trade-offs, and a
        front on vertices shows other points.  A transfer rule forgets what it has learned, and with vertices what
        `update_buffers` computed for the old points is dropped.
        """
        return self._blend.preferences.clone()

    @preferences.setter
    def preferences(self, preferences: Tensor | Sequence[Sequence[float]]) -> None:
        old = self._blend.preferences
        if isinstance(preferences, Tensor):
            preferences = preferences.detach().to("cpu", torch.float64)
        checked = check_preferences(preferences, *old.shape)
        for ranks in self._others():
            ranks.agree({"call": "preferences =", "subproblem": [{"preferences": row} for row in checked.tolist()]})
        self._blend.prefer(checked.to(old))
        if self._buffers.vertices is not None:
            self._model_buffers.forget_evaluated()
        self._parts().tell_weigher()

    @property
    def points(self) -> Tensor:
        """float64 [K, T], the preferences of the step that comes next: with ``front="vertices"`` its random points."""
        vertices = self._buffers.vertices
        return (self._blend.preferences if vertices is None else vertices.points).clone()

    def _points_to_weigh(self) -> Tensor | None:
        """The points of this step, for a weighting that has them as preferences; None: it has fixed ones."""
        vertices = self._buffers.vertices
        return None if vertices is None or self._objective.scalarization is not None else vertices.own

    def backward(
        self,
        losses: Losses,
        *,
        scaler: Any = None,
        retain_graph: bool = False,
        backward: Backward | None = None,
    ) -> None:
        """Backward of the scalarized losses, into ``.grad``; of each of them, into buffers, if there is a weighting.

        Args:
            losses: T scalars of the active subproblem, as a tensor [T] or a sequence; [K, T] if stacked.  In a sequence
                None, or a loss without a graph, says that the task has no data in this mini-batch: see the class.
            scaler: a ``torch.amp.GradScaler``, whose factor the gradients then carry.
            retain_graph: as in ``torch.autograd.backward``.
            backward: the trainer's backward for this call, in the place of that of the constructor.

        A call that fails in the backward pass leaves other subproblems' gradients as they are, and this one's too
        unless it had some already: then they have been added to.  (With a weighting these are dropped.)

        Raises:
            TypeError: for losses that are no tensors, before any gradient is computed.
            ValueError: for another number of losses, no graph, or another scaler than in calls before, before any
                gradient is computed.
            RuntimeError: inside of `at`, or of a context that shows running averages: there the gradient would be
                that of other parameters than those that a step trains.
        """
        with together(*self._others()):
            self._take_losses(losses, scaler, self._way(backward, retain_graph))

    def _take_losses(self, losses: Losses, scaler: Any, way: Pass) -> None:
        """Backward of the losses of the active subproblem, or of all of a bank."""
        given = SubproblemLosses.of(losses, self._num_tasks, self._buffers)
        self._check_trained_shown()
        scaler = scaler_in_use(scaler, self._now.batch.scaler, begun=self._now.batch.begun)
        self._look_for_ranks()
        self._look_for_statistics(given)
        if self._tasks is not None:
            self._read_shown()
            self._tasks.weigher.draw_ahead()
        row, batch, vertices = self._row, self._now.batch, self._buffers.vertices
        points = self._blend.own if vertices is None else vertices.own
        batch.see(given.absent, row)
        seen = self._seen_by_all(given.values) if self._objective.reads_losses else None
        backward = SubproblemBackward(self._buffers, self._objective, self._tasks, batch, row, points)
        backward.run(given, seen, scaler, way)
        if self._ranks is not None:
            self._ranks.count(row)

    def _look_for_statistics(self, losses: SubproblemLosses) -> None:
        """Warns once of running statistics that all subproblems share."""
        several = self._buffers.keeps_rows or (self._buffers.vertices is not None and not self._buffers.stacked)
        if several and not self._model_buffers.shown and not self._now.graph_checked:
            check_running_statistics(losses.roots, self._warn_once, about_statistics(self._buffers))
        self._now.graph_checked = True

    def _seen_by_all(self, losses: Tensor) -> Tensor:
        """The losses that coefficients are made of: the means over the ranks, unless they make no difference."""
        if self._ranks is None or not self._objective.goes_by_losses:
            return losses
        self._ranks.agree(self._call(f"backward() of subproblem {self._now.row}"))
        return self._ranks.mean(losses)

    def _forget(self) -> None:
        super()._forget()
        self._objective.forget()

    # ------------------------------------------------------------------ the step
    @torch.no_grad()
    def step(self, closure: Callable[[], Losses] | None = None) -> Tensor | None:  # type: ignore[override]
        """One step of all K subproblems, which are random points with ``front="vertices"``.

        Args:
            closure: returns the losses of the model as it is: T scalars, or [K, T] if stacked.  It is called once for
                each subproblem, under grad mode, with the model at that subproblem; backward is done here.  A closure
                that returns None (trainers pass such ones), or a scalar as those of torch.optim do where a step has one
                gradient (one task; one point or one subproblem without a weighting), has done backward itself: it is
                called once.

        Returns:
            The losses, float64 [K, T], if there was a closure that returned them, else None.  (On vertices they are
            those at ``optimizer.points`` as these were before the step; with ``subproblem_mesh=``, those of this rank.)

        Raises:
            RuntimeError: if there is no gradient at all, or inside of a loop over subproblems; nothing is changed then.
        """
        self._check_behind_loops()
        if closure is None and self._only_asked_for_state():
            return None
        done, result = True, None
        with together(*self._others()):
            if closure is not None:
                check_function("closure", closure, "pass a function that returns the losses, or nothing")
                done, result = run_closure(self, closure)
            scaling = self._prepare()
        with together(*(self._others() if self._buffers.peers is not None else ())):
            losses = self._complete(scaling)
        return result if done else losses

    def _complete(self, scaling: Scaling) -> Tensor | None:
        """The step of the gradients that there are; its losses [K, T], NaN of absent tasks."""
        self._reduce(scaling)
        others, taken = self._meet(scaling), None
        gradients, found = self._gathered(scaling).find(scaling, look=self._look_for_nonfinite)
        with undone_on_error(self._blend.rule, *([] if self._tasks is None else [self._tasks.weigher.weighting])):
            plan, weights, losses = gradients.plan(found)
            if weights is not None:
                self._now.weights = weights
            others_go_on = others is not None and not self._report.skip_all  # and wait for this rank's rows
            if others_go_on or not nothing_left(plan.skipped):
                self._transfer_and_apply(plan, losses, others)
                taken = None if self._step_recorder is None else self._blend.taken()
        self._await_feedback(losses, plan.skipped)
        seen = without_absent(losses, self._now.batch)
        if self._step_recorder is not None:
            self._record_step(seen, plan.skipped.expand(len(self._report.counts)), taken)
        if self._buffers.vertices is not None:
            self._buffers.vertices.advance(self._buffers.flats)
        self._count_skipped(plan.found, plan.skipped, scaling)
        self._forget()
        return seen

    def _prepare(self) -> Scaling:
        """Takes in what others did since the last step, and the gradients."""
        self._look_for_ranks()
        if self._tasks is not None:
            check_present(self._now.batch)
        self._synchronize()
        if self._buffers.vertices is not None:
            self._model.take_changes()
        scaling = Scaling.of(self, self._now.batch.scaler)
        scaling.check_known()
        flats = self._buffers.flats
        if self._buffers.keeps_rows:
            if self._tasks is None:
                scaling.check_not_unscaled()
            self._store_gradients()
        elif self._tasks is None:
            check_dense(p.grad for p in self._buffers.parameters())
            for flat in flats:
                flat.tasks.take(keep=self._buffers.vertices is None)  # a gradient belongs to the points of its step
        if flats and all(flat.tasks.is_empty() for flat in flats):
            raise RuntimeError(self._without_gradients())
        if not any(self._now.batch.absent_of.values()):  # whose heads have no gradient, as they should
            self._name_unreached([flat.tasks for flat in flats])
        if self._buffers.keeps_rows and (text := about_missing_rows(self._buffers)) is not None:
            self._warn_once("missing rows", text)
        self._buffers.refresh(self.param_groups, self._base, self._ema)
        return scaling

    def _reduce(self, scaling: Scaling) -> None:
        """Sums gradients over the ranks, after a look at whether all are at the same step."""
        self._check_scaler_of_ranks(scaling)
        if self._ranks is not None:
            self._ranks.reduce_([flat.tasks for flat in self._buffers.flats], self._call("step()"))

    def _meet(self, scaling: Scaling) -> list[list[bool]] | None:
        """Looks whether the ranks of all subproblems are at the same step; see `met`."""
        given = all(losses is not None for losses in self._now.batch.losses)
        facts = {"number of transfers": self._blend.steps, "losses given to backward()": given, **self._facts()}
        call = {"call": "step()", "scaler": scaling.under_scaler, **facts}
        return None if self._buffers.peers is None else met(self._buffers, call)

    def _gathered(self, scaling: Scaling) -> Round:
        """The gradients of the step, with losses that are the means over the ranks."""
        batch = self._now.batch
        losses = batch.given_losses()
        if self._ranks is not None and losses is not None:
            losses = self._joint(as_table(losses, len(batch.losses)) if not isinstance(losses, Tensor) else losses)
        divisor, points = self._divisor(scaling), self._points_to_weigh()
        return Round(self._buffers, self._tasks, self._report, batch, losses, divisor, points)

    def _divisor(self, scaling: Scaling) -> Tensor | None:
        """float32 [1], what the gradients are divided by, or None."""
        device = self._buffers.device
        factor = scaling.factor(device) if self._tasks is None else scaling.kept_factor(device)
        return self._of_all_ranks(factor)

    def _transfer_and_apply(self, plan: Plan, losses: Tensor | None, others: list[list[bool]] | None) -> None:
        """others: as `_meet` gave it."""
        way = Applying(
            self._buffers, self._base, self._blend, self.param_groups, self._apply, self._ema, self._report.skip_all
        )
        if way.step(plan, losses, others):
            self._warn_once("shared batch", self._blend.about_shared_batch())
        if self._tasks is not None:
            self._tasks.weigher.done()

    # ------------------------------------------------------------------ what weightings learn from
    @property
    def weights(self) -> Tensor | None:
        """float64 [K, T] (per tensor: [K, S, T]), the weights of the last step; NaN where it was skipped."""
        return self._last_weights()

    def history(self) -> StepHistory:
        """The last steps, of which ``history=`` says how many are kept.

        Raises:
            RuntimeError: if none are.
        """
        return self._recorded_steps()

    @torch.no_grad()
    def feedback(self, losses: Tensor | Sequence[Tensor]) -> None:
        """For weightings that learn from it (FAMO): the losses of the last mini-batches again, after the step.

        losses: T scalars or [T]; [K, T] of several subproblems.
        """
        if self._tasks is None:
            raise RuntimeError("expected a weighting that learns from feedback(), got none: leave the call out")
        self._tasks.weigher.check_feedback()
        num_rows = self._buffers.num_rows if self._buffers.num_rows > 1 else None
        self._learn_from(check_losses(losses, self._num_tasks, num_rows, graph=False).detach().double())

    def epoch_end(self) -> None:
        """Counts an epoch, for weightings that go by them (DWA)."""
        if self._tasks is not None:
            self._tasks.weigher.epoch += 1

    # ------------------------------------------------------------------ state
    def whole_state_dict(self) -> dict[str, Any] | None:
        """The state dict of one process that has all subproblems: with ``subproblem_mesh=``, all ranks call this.

        An optimizer of as many subproblems can load it, on any number of ranks, each of which takes its part.
        `state_dict` gives and takes the rows of this rank.

        Returns:
            The dict on the first rank, on the host; None on the others.
        """
        peers = self._buffers.peers
        if peers is None:
            return self.state_dict()
        with together(peers):
            own = self.state_dict()
        return whole_of(own, self._family, peers, vertices=self._buffers.vertices is not None)

    def _parts(self) -> Parts:
        return Parts(
            self._blend, self._objective, self._report, self._model_buffers, self._tasks,
            self._buffers, self._step_recorder, self._now.row,
        )  # fmt: skip

    def _export_shared(self) -> dict[str, Any]:
        return self._parts().exported()

    def _loaded_shared(self, shared: Any, state: dict[Any, Any]) -> Callable[[], None]:
        return self._parts().loaded(shared)
