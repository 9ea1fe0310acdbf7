"""The weighted gradient of T losses into ``.grad``, for any optimizer."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..checks import check_flag
from ..ranks import together
from ..weighting import Needs, Weighting, as_weighting
from .averaged import Averages
from .features import check_features
from .into_grad import IntoGrad
from .layers.engine import LayerEngine, check_engine
from .layout import Layout
from .losses import task_losses
from .options import check_one_row, check_task_options, check_ways_of_shards, members_of
from .parameters import check_parameters
from .passes import Backward, Pass, check_backward, scaler_in_use
from .skipped import RefusedCalls
from .table import GradientTable
from .tasks import TaskGradients
from .visit import TaskVisit, check_alone, words_about
from .ways import Ways
from .weigher import READS_GRADIENTS, Weigher

__all__ = ["WeightedBackward", "weighted_backward"]

Losses = Tensor | Sequence[Tensor | None]


def weighted_backward(
    losses: Losses,
    params: Any,
    *,
    weighting: Weighting | str | None = None,
    preferences: Tensor | Sequence[float] | None = None,
    heads: str = "plain",
    collect: str = "sequential",
    store: bool = True,
    engine: LayerEngine | None = None,
    features: Tensor | Sequence[Tensor] = (),
    generator: torch.Generator | None = None,
    scaler: Any = None,
    retain_graph: bool = False,
    backward: Backward | None = None,
) -> Tensor:
    """Adds the weighted gradient of T losses to ``.grad``; returns the weights, float64 [T] (per tensor: [S, T]).

    One call of a :class:`WeightedBackward`, where the arguments are described.  In a training loop make one of these:
    it keeps its buffers, and counts the steps of weightings that go by them.  What else a weighting remembers stays in
    the instance: pass the same one each time.  Refused (ValueError) are weightings that have to be told of more than
    losses: of epochs, or of the losses after a step.
    """
    count = len(losses)
    weighting = as_weighting(weighting)
    if weighting.needs & (Needs.EPOCHS | Needs.FEEDBACK):
        raise ValueError(
            f"{type(weighting).__name__} has to be told of epochs or of the losses after a step, but this is one call: "
            "make a WeightedBackward, and call its epoch_end() or feedback(losses)"
        )
    into_grad = WeightedBackward(
        params, num_tasks=count, weighting=weighting, preferences=preferences, heads=heads, collect=collect,
        store=store, engine=engine, generator=generator, forget=False, backward=backward,
    )  # fmt: skip
    return into_grad(losses, features=features, scaler=scaler, retain_graph=retain_graph)


class WeightedBackward:
    """Called with T losses, adds their weighted gradient to the ``.grad`` of parameters.

        backward = WeightedBackward(model.parameters(), num_tasks=2, weighting=UPGrad())
        for x, y in loader:
            optimizer.zero_grad()
            backward(task_losses(model, x, y))
            optimizer.step()                                # any optimizer of torch.optim

    Args:
        params: parameters, or groups as of :class:`WeightedFused`: dicts with ``params``, and ``task`` for heads.
        num_tasks: T.
        weighting, preferences, heads, collect, generator: as of :class:`WeightedFused`.
        store: keep the T gradients of the shared parameters in a buffer [T, P] (default).  False: their Gram matrix is
            added up parameter by parameter in one batched backward, and a second backward of the weighted sum gives the
            gradient: memory for T gradients of one parameter only, but graphs must be such as ``collect="batched"``
            takes, and the weighting one of Gram matrix and losses (with a process group: of losses only).
        engine: a :class:`mt2o_ext.gradients.layers.LayerEngine` of the model, for many tasks or the losses of single
            samples: the Gram matrix comes from the layers' inputs and output gradients, and nothing is stored.  In
            other respects as ``store=False``; ``collect`` says how gradients are taken that no formula covers.
        forget: start with a fresh state of the weighting; False: go on from the one that the instance has.
        process_group: data parallelism, as of :class:`WeightedFused`: what comes into ``.grad`` is averaged over the
            ranks, and all ranks start from the first one's parameters.
        backward: a trainer's backward, as of :class:`WeightedFused`; not for ``collect="batched"``, ``features=`` and
            Gram matrices with ``store=False``.

    Where all ``.grad`` are None they become views of one buffer, which a later such call writes again: copy what has to
    last longer.  Otherwise the gradient is added to what is there.  Parameters that no loss depends on are left alone.
    Weights of NaN (an infinite or NaN loss or gradient, say) give a gradient of NaN: no error, nothing hidden.  Where
    the weighting is not defined for a loss (``weighting.loss_domain``) a warning names it, once, and again after 10,
    100, 1000 ... such calls one after the other; if the losses are on a GPU, at a later call of the same object.
    """

    def __init__(
        self,
        params: Any,
        *,
        num_tasks: int,
        weighting: Weighting | str | None = None,
        preferences: Tensor | Sequence[float] | None = None,
        heads: str = "plain",
        collect: str = "sequential",
        store: bool = True,
        engine: LayerEngine | None = None,
        generator: torch.Generator | None = None,
        forget: bool = True,
        process_group: Any = None,
        backward: Backward | None = None,
    ) -> None:
        check_flag("store", store)
        check_flag("forget", forget)
        table = check_one_row(preferences, num_tasks)
        weighting = check_task_options(weighting, heads, collect)
        self._engine, self._unstored = check_engine(engine, weighting), "store=False" if engine is None else "engine="
        store = store and engine is None
        if not store and (weighting.per_segment or Needs.ROWS in weighting.needs):
            raise ValueError(
                f"expected a weighting of the Gram matrix or losses for {self._unstored}, got "
                f"{type(weighting).__name__}: leave {self._unstored} out"
            )
        self._pass = Pass(check_backward(backward))
        self._pass.check_sequential('collect="batched"' if collect == "batched" else None)
        self._num_tasks, self._store = num_tasks, store
        self._weigher = Weigher(weighting, table, generator)
        self._tasks = TaskGradients(self._weigher, num_tasks, heads, collect)
        self._members = list(members_of(params, num_tasks))
        check_parameters([p for p, _ in self._members], None, None)
        check_ways_of_shards([p for p, _ in self._members], weighting, collect=collect, store=store)
        if not self._members:
            raise ValueError("expected parameters, got none: pass those that the losses depend on")
        if all(task is not None for _, task in self._members):
            raise ValueError("expected shared parameters, got only those of heads: nothing is left to weight")
        self._forget = forget
        self._visit: TaskVisit | None = None
        self._weights: Tensor | None = None
        self._refused = RefusedCalls()
        self._averages = Averages(process_group, self._members, self._weigher)
        self._averages.join({"num_tasks": num_tasks, "heads": heads, "collect": collect, "store": store})
        self._kinds: list[tuple[Any, ...]] = []
        self._build()

    def _build(self) -> None:
        """Makes the buffers, for the parameters as they are now."""
        kinds = [(p.dtype, p.device, p.shape, p.stride()) for p, _ in self._members]
        if kinds == self._kinds:
            return
        self._kinds = kinds
        shared, heads = self._tables(head=False), self._tables(head=True)
        self._tasks.bind(
            [table for table, _ in [*shared, *heads]],
            [tasks for _, tasks in [*shared, *heads]],
            forget=self._forget,
        )
        self._forget = False
        into_grad = IntoGrad(self._tasks, copies=self._averages.ranks is not None)
        self._ways = Ways(self._tasks, self._averages, into_grad, self._engine)

    def _tables(self, *, head: bool) -> list[tuple[GradientTable, list[int | None]]]:
        """Gradients of shared parameters or of heads, a table for each dtype, and the tasks of the parameters."""
        found: dict[torch.dtype, list[tuple[Tensor, int | None]]] = {}
        for p, task in self._members:
            if (task is not None) == head:
                found.setdefault(p.dtype, []).append((p, task))
        weighting = self._weigher.weighting
        rows = self._store and (weighting.per_segment or bool(weighting.needs & READS_GRADIENTS))
        num_tasks = self._num_tasks if rows and not head else 1
        return [
            (GradientTable(Layout([p for p, _ in members]), num_tasks), [task for _, task in members])
            for members in found.values()
        ]

    # ------------------------------------------------------------------ the call
    def __call__(
        self,
        losses: Losses | None,
        *,
        features: Tensor | Sequence[Tensor] = (),
        scaler: Any = None,
        retain_graph: bool = False,
        backward: Backward | None = None,
    ) -> Tensor:
        """Adds the weighted gradient of these losses to ``.grad``.

        Args:
            losses: T scalars, a sequence (better, see :class:`WeightedFused`) or a tensor [T].  In a sequence None, or
                a loss without a graph, says that the task has no data in this mini-batch: its head is left alone, its
                weight is 0, and the others' weights are as if there were no such task.
            features: the shared representation z, a tensor of the graph or several: the weights come from the Gram
                matrix of dl_t/dz instead of the parameters' (the upper bound of MGDA-UB, Sener and Koltun 2018), which
                takes T backward passes through the heads but one through the trunk.  All influence of the shared
                parameters on the losses must go through z.
            scaler: a ``torch.amp.GradScaler``, whose factor the gradients then carry.
            retain_graph: as in ``torch.autograd.backward``.
            backward: the trainer's backward for this call, in the place of that of the constructor.

        Returns:
            The weights, float64 [T], or [S, T] of a weighting of each tensor.

        Raises:
            TypeError: for losses that are no tensors, before any gradient is computed.
            ValueError: for losses or features that do not fit, before any gradient is computed.
            RuntimeError: if the losses reach none of the parameters, for a weighting of gradients that are stored.
        """
        points = check_features(features)
        way = self._pass.of_call(backward, retain_graph)
        way.check_sequential(self._without_pass(points))
        if self._visit is not None:
            if points:
                raise ValueError("expected no features= inside of tasks(), got some: leave them out")
            with together(self._averages.ranks):
                own = self._visit.backward(losses, scaler, way, drop=self._forget_gradients)
            return torch.full((), torch.nan, dtype=torch.float64) if own is None else own
        self._averages.look_once()
        with together(self._averages.ranks):
            given = task_losses(losses, self._num_tasks)
            self._check_way(points)
            scaler = scaler_in_use(scaler, None, begun=False)
            self._build()
        self._forget_gradients()
        scalars = way.scaled(given.each, scaler)
        own = given.values.unsqueeze(0)
        factor = None if scaler is None else scaler.scale(torch.ones((), dtype=torch.float32, device=own.device))
        lacking = f" without tasks {sorted(given.absent)}" if given.absent else ""
        call = f"backward with {len(points)} features{lacking}"
        table, absent = self._averages.of_losses(own, call), given.absent
        weigher = self._weigher
        if points:
            weights = self._ways.through(points, scalars, table, absent, factor, way)
        elif not self._store or not weigher.reads_gradients():
            weights = self._ways.in_two_passes(
                given, scalars, table, way, losses if scaler is None else scalars, factor
            )
        else:
            with together(self._averages.ranks):
                self._tasks.collect(scalars, 0, way)
                self._check_reached()
            weights = self._ways.from_buffer(table, absent, factor)
        return self._done(weights, table)

    def _done(self, weights: Tensor, table: Tensor) -> Tensor:
        """Counts the call with these weights and losses; returns the weights."""
        weigher = self._weigher
        self._ways.into_grad.add_heads(weights)
        self._forget_gradients()
        self._refused.look(weigher.weighting, weights.device)
        weigher.await_feedback(table)
        weigher.done()
        self._weights = weights[0].clone()
        return self._weights.clone()

    # ------------------------------------------------------------------ tasks one at a time
    def tasks(self) -> Iterator[int]:
        """Goes through the tasks 0 .. T-1, each with a mini-batch, a forward and a backward pass of its own.

            for task in backward.tasks():
                backward(task_loss(model, *next(batches[task]), task))
            optimizer.step()

        Inside of the loop a call takes one scalar loss, whose graph is freed with it, and returns its value.  A task
        without a call, or with ``backward(None)``, is absent.  When the loop has ended, the weighted gradient of all is
        in ``.grad``, and `weights` tells how it was weighted.  A loop that is left early leaves nothing.

        Raises:
            RuntimeError: inside of another such loop; and for a weighting of the losses alone, whose weights are made
                before the first backward, or ``store=False``.
        """
        check_alone(self._visit)
        if not self._store or not self._weigher.reads_gradients():
            what = type(self._weigher.weighting).__name__ if self._store else self._unstored
            raise RuntimeError(
                f"expected a weighting of stored gradients for tasks(), got {what}: pass the losses of all tasks in "
                "one call, because the weights come first"
            )
        self._averages.look_once()
        self._build()
        self._forget_gradients()
        visit = self._visit = TaskVisit(self._tasks.slots, self._num_tasks)
        yield from visit.turns(self._end_visit)

    @property
    def preferences(self) -> Tensor:
        """float64 [T], weights of the tasks on the simplex, for weightings that have a use for them; may be set."""
        return self._weigher.preferences[0].clone()

    @preferences.setter
    def preferences(self, preferences: Tensor | Sequence[float]) -> None:
        self._weigher.prefer(preferences, self._averages.ranks)

    @property
    def weights(self) -> Tensor | None:
        """float64 [T] (per tensor: [S, T]), the weights of the last call or loop; None before any."""
        return None if self._weights is None else self._weights.clone()

    def _end_visit(self, visit: TaskVisit) -> None:
        self._visit = None
        losses, absent = visit.losses(), visit.absent
        if losses is None or not visit.complete:
            self._forget_gradients()
            if visit.missed:
                text = words_about(visit.missed, "nothing was combined, and .grad is as it was")
                warnings.warn(text, UserWarning, stacklevel=4)
            return
        with together(self._averages.ranks):
            self._check_reached()
        lacking = f" without tasks {sorted(absent)}" if absent else ""
        table = self._averages.of_losses(losses, f"tasks(){lacking}")
        scaler = visit.scaler
        factor = None if scaler is None else scaler.scale(torch.ones((), dtype=torch.float32, device=losses.device))
        self._done(self._ways.from_buffer(table, absent, factor), table)

    def _check_reached(self) -> None:
        """Refuses gradients of none of the parameters: then ``.grad`` would hold a plain sum, which nothing weights."""
        tables = self._tasks.tables
        trained = any(p.requires_grad for table in tables for p in table.layout.parameters)
        if trained and not any(any(table.reached()) for table in tables):
            self._forget_gradients()
            raise RuntimeError(
                "expected losses of the parameters that were given, but backward reached none of them: were they "
                "replaced in the model since (by fully_shard, load_state_dict(assign=True), another model)? Then make "
                "a new WeightedBackward, after fully_shard"
            )

    def _forget_gradients(self) -> None:
        for table in self._tasks.tables:
            table.forget()

    @torch.no_grad()
    def feedback(self, losses: Losses) -> None:
        """For weightings that learn from it (FAMO): losses of the last mini-batch anew, after the optimizer's step.

        Raises:
            RuntimeError: if the weighting learns nothing from it, or there was no call before.
            ValueError: for another number of losses.
        """
        self._weigher.check_feedback()
        after = task_losses(losses, self._num_tasks, graph=False).values.unsqueeze(0)
        self._weigher.learn(self._averages.of_losses(after, "feedback()"))

    def epoch_end(self) -> None:
        """Counts an epoch, for weightings that go by them (DWA)."""
        self._weigher.epoch += 1

    def state_dict(self) -> dict[str, Any]:
        """The state of the weighting and of the random numbers, as tensors and numbers."""
        return self._weigher.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` gave.

        Raises:
            TypeError: for an entry of another kind; nothing is changed then.
            ValueError: for a state that does not fit; nothing is changed then.
        """
        self._weigher.loaded(state)()

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and deepcopy: without gradients and a loop that goes on; buffers are made anew."""
        return {**{key: value for key, value in self.__dict__.items() if key != "_ways"}, "_kinds": [], "_visit": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._build()

    def _without_pass(self, points: Sequence[Tensor]) -> str | None:
        """The option that leaves no backward pass to a trainer, or None."""
        if self._tasks.collecting == "batched":
            return 'collect="batched"'
        if points:
            return "features="
        return self._unstored if not self._store and self._weigher.due() & READS_GRADIENTS else None

    def _check_way(self, points: Sequence[Tensor]) -> None:
        weighting = self._weigher.weighting
        if self._averages.ranks is not None and not self._store and not points and weighting.needs & READS_GRADIENTS:
            raise ValueError(
                f"expected a weighting of the losses, or features=, for {self._unstored} with process_group=, got "
                f"{type(weighting).__name__}: leave {self._unstored} out, because it needs the averaged gradients"
            )
        if points and (weighting.per_segment or Needs.ROWS in weighting.needs):
            raise ValueError(
                f"expected a weighting of the Gram matrix or losses for features=, got {type(weighting).__name__}: "
                "leave features= out"
            )
        if points and self._averages.sharded:
            raise ValueError(
                "expected no features= with sharded parameters, got some: leave them out, because the gradients of "
                "heads are complete after an ordinary backward only"
            )
