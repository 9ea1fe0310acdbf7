"""The weighted gradient of T losses into ``.grad``, for any optimizer."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..ranks import as_ranks, describe, together, warning_of_drift
from ..weighting import Needs, Weighting, WeightingContext, as_weighting
from .collect import Slot, collect_gram, collect_sequential, grads_kept, gram_of, weighted_sum
from .layout import Layout
from .losses import as_list, check_losses
from .options import check_one_row, check_task_options, members_of
from .parameters import check_parameters
from .skipped import SkippedSteps
from .table import GradientTable
from .tasks import Batch, TaskGradients
from .weigher import READS_GRADIENTS, Weigher

__all__ = ["WeightedBackward", "weighted_backward"]

Losses = Tensor | Sequence[Tensor]


def weighted_backward(
    losses: Losses,
    params: Any,
    *,
    weighting: Weighting | str | None = None,
    preferences: Tensor | Sequence[float] | None = None,
    heads: str = "plain",
    collect: str = "sequential",
    store: bool = True,
    features: Tensor | Sequence[Tensor] = (),
    generator: torch.Generator | None = None,
    scaler: Any = None,
    retain_graph: bool = False,
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
    backward = WeightedBackward(
        params, num_tasks=count, weighting=weighting, preferences=preferences, heads=heads, collect=collect,
        store=store, generator=generator, forget=False,
    )  # fmt: skip
    return backward(losses, features=features, scaler=scaler, retain_graph=retain_graph)


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
        forget: start with a fresh state of the weighting; False: go on from the one that the instance has.
        process_group: data parallelism, as of :class:`WeightedFused`: what comes into ``.grad`` is averaged over the
            ranks, and all ranks start from the first one's parameters.

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
        generator: torch.Generator | None = None,
        forget: bool = True,
        process_group: Any = None,
    ) -> None:
        table = check_one_row(preferences, num_tasks)
        weighting = check_task_options(weighting, heads, collect)
        if not store and (weighting.per_segment or Needs.ROWS in weighting.needs):
            raise ValueError(
                f"expected a weighting of the Gram matrix or losses for store=False, got {type(weighting).__name__}: "
                "take store=True"
            )
        self._num_tasks, self._store = num_tasks, store
        self._weigher = Weigher(weighting, table, generator)
        self._tasks = TaskGradients(self._weigher, num_tasks, heads, collect)
        self._members = list(members_of(params, num_tasks))
        check_parameters([p for p, _ in self._members], None, None)
        if not self._members:
            raise ValueError("expected parameters, got none: pass those that the losses depend on")
        if all(task is not None for _, task in self._members):
            raise ValueError("expected shared parameters, got only those of heads: nothing is left to weight")
        self._forget = forget
        self._skips = SkippedSteps(1)
        self._ranks = as_ranks(process_group)
        self._alone = process_group is None  # as far as was said, and not looked into yet
        if self._ranks is not None:
            self._join()
        self._kinds: list[tuple[Any, ...]] = []
        self._build()

    def _join(self) -> None:
        """Makes sure that all ranks are about to do the same, from the same parameters and random numbers."""
        assert self._ranks is not None
        groups = [{"params": [p], "task": task} for p, task in self._members]
        tasks = self._tasks
        own = {"num_tasks": self._num_tasks, "heads": tasks.heads, "collect": tasks.collecting, "store": self._store}
        self._ranks.agree({"call": "WeightedBackward", **own, **self._weigher.description(), **describe(groups)})
        self._ranks.share_([p.data for p, _ in self._members])
        self._weigher.share(self._ranks)

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
        self._trunks = self._tasks.trunks
        self._combined = [_row(table.layout) for table in self._trunks]

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
        losses: Losses,
        *,
        features: Tensor | Sequence[Tensor] = (),
        scaler: Any = None,
        retain_graph: bool = False,
    ) -> Tensor:
        """Adds the weighted gradient of these losses to ``.grad``.

        Args:
            losses: T scalars, a sequence (better, see :class:`WeightedFused`) or a tensor [T].
            features: the shared representation z, a tensor of the graph or several: the weights come from the Gram
                matrix of dl_t/dz instead of the parameters' (the upper bound of MGDA-UB, Sener and Koltun 2018), which
                takes T backward passes through the heads but one through the trunk.  All influence of the shared
                parameters on the losses must go through z.
            scaler: a ``torch.amp.GradScaler``, whose factor the gradients then carry.
            retain_graph: as in ``torch.autograd.backward``.

        Returns:
            The weights, float64 [T], or [S, T] of a weighting of each tensor.

        Raises:
            TypeError: for losses that are no tensors, before any gradient is computed.
            ValueError: for losses or features that do not fit, before any gradient is computed.
        """
        points = [features] if isinstance(features, Tensor) else list(features)
        self._warn_if_alone()
        with together(self._ranks):
            stacked = check_losses(losses, self._num_tasks, None)
            self._check_way(points)
            self._build()
        self._forget_gradients()
        scalars = as_list(losses)
        if scaler is not None and scaler.is_enabled():
            scalars = [scaler.scale(loss) for loss in scalars]
        factor = None if scaler is None else scaler.scale(torch.ones((), dtype=torch.float32, device=stacked.device))
        table = self._joint(stacked.detach().double().unsqueeze(0), f"backward with {len(points)} features")
        weigher = self._weigher
        if points:
            weights = self._through(points, scalars, table, factor, retain_graph)
        elif not self._store or not weigher.reads_gradients():
            weights = self._in_two_passes(scalars, stacked, table, retain_graph)
        else:
            weights = self._from_buffer(scalars, table, factor, retain_graph)
        self._fill_heads(weights)
        self._forget_gradients()
        self._warn_of_refused(weights)
        weigher.await_feedback(table)
        weigher.done()
        return weights[0].clone()

    def _forget_gradients(self) -> None:
        for table in self._tasks.tables:
            table.forget()

    @torch.no_grad()
    def _warn_of_refused(self, weights: Tensor) -> None:
        """Warns where the weighting is not defined for what is finite; if it is on a GPU, at a later call."""
        if torch.compiler.is_compiling():
            return
        weighting = self._weigher.weighting
        self._skips.to(weights.device)
        refused = weighting.refused
        assert refused is not None
        if refused.device.type == "cpu" and not bool(refused.any()):
            self._skips.nothing_skipped()
            return
        refusals = weighting.refusals()
        assert refusals is not None
        self._skips.add(refusals, refused)
        for skips in self._skips.news():
            reason = weighting.reasons[skips.reason - 1]
            what = "the weights and the gradients of this call are NaN"
            if skips.in_a_row >= 10:
                what = f"the weights and the gradients of {skips.in_a_row} calls one after the other are NaN"
            warnings.warn(
                f"{reason.of(None, skips.task, skips.value)}: {what}. {reason.remedy}", UserWarning, stacklevel=3
            )

    @torch.no_grad()
    def feedback(self, losses: Losses) -> None:
        """For weightings that learn from it (FAMO): losses of the last mini-batch anew, after the optimizer's step.

        Raises:
            RuntimeError: if the weighting learns nothing from it, or there was no call before.
            ValueError: for another number of losses.
        """
        self._weigher.check_feedback()
        after = check_losses(losses, self._num_tasks, None, graph=False).detach().double().unsqueeze(0)
        self._weigher.learn(self._joint(after, "feedback()"))

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

    # ------------------------------------------------------------------ data parallelism
    def _warn_if_alone(self) -> None:
        if self._alone:
            self._alone = False
            if text := warning_of_drift(None, type(self).__name__, wrapper=False):
                warnings.warn(text, UserWarning, stacklevel=3)

    def _call(self, name: str) -> dict[str, Any]:
        frozen = [index for index, (p, _) in enumerate(self._members) if not p.requires_grad]
        return {"call": name, "frozen parameters": frozen, **self._weigher.progress()}

    def _joint(self, losses: Tensor, call: str) -> Tensor:
        """The mean over the ranks, after a look at whether all make the same call."""
        if self._ranks is None:
            return losses
        self._ranks.agree(self._call(call))
        return self._ranks.mean(losses)

    def _reduce(self, tables: Sequence[GradientTable]) -> None:
        if self._ranks is not None:
            self._ranks.reduce_(tables, self._call("gradients"))
            for table in tables:
                table.flat().div_(self._ranks.size)

    @contextmanager
    def _averaged(self) -> Iterator[list[Tensor]]:
        """Averages over the ranks what backward adds here to ``.grad`` of the shared parameters."""
        parameters = [p for table in self._trunks for p in table.layout.parameters if p.requires_grad]
        if self._ranks is None:
            yield parameters
            return
        before = [p.grad for p in parameters]
        try:
            for p in parameters:
                p.grad = None
            with together(self._ranks):
                yield parameters
            self._ranks.average_grad_(parameters, self._call("gradients"))
        except BaseException:
            for p in parameters:
                p.grad = None
            raise
        finally:
            for p, old in zip(parameters, before, strict=True):
                if old is not None:
                    p.grad = old if p.grad is None else old.add_(p.grad)
        self._reduce(self._heads)

    # ------------------------------------------------------------------ three ways
    @torch.no_grad()
    def _weigh(
        self,
        table: Tensor,
        segments: Tensor | None,
        factor: Tensor | None,
        dtypes: Sequence[torch.dtype] = (),
    ) -> Tensor:
        """float64 [1, T] or [1, S, T], from losses [1, T] and Gram matrices [S, T, T] of scaled gradients.

        dtypes: of the gradients, where they are not the parameters'.
        """
        context = self._weigher.context(table, None, dtypes)
        if segments is not None:
            if factor is not None:
                segments = segments / factor.double().square()
            context = _with_gram(context, segments.unsqueeze(0))
        return self._weigher.weighting.weights(context)

    def _from_buffer(
        self, losses: Sequence[Tensor], table: Tensor, factor: Tensor | None, retain_graph: bool
    ) -> Tensor:
        """T gradients in the buffer, their Gram matrix, their combination."""
        with together(self._ranks):
            self._tasks.collect(losses, 0, retain_graph=retain_graph)
        self._reduce(self._tasks.tables)
        with torch.no_grad():
            batch, found = Batch(), torch.zeros(1, dtype=torch.float32, device=table.device)
            self._tasks.transform(batch, table, found, factor)
            weighed = self._tasks.weigh(batch, table, found, factor)
            self._combine(weighed.applied)
        return weighed.weights

    def _in_two_passes(self, losses: Sequence[Tensor], stacked: Tensor, table: Tensor, retain_graph: bool) -> Tensor:
        """The weights first (of the losses, or of a Gram matrix that is added up on the way), then one backward."""
        segments = None
        if self._weigher.due() & READS_GRADIENTS:
            segments = collect_gram(stacked, [p for table in self._trunks for p in table.layout.parameters])
        weights = self._weigh(table, segments, None)
        with self._averaged() as parameters:
            if any(self._tasks.slots.heads(0)):
                collect_sequential(losses, self._tasks.slots.heads(0), short=True, retain_graph=True)
            if parameters:
                total = weighted_sum(losses, weights[0])
                with grads_kept(self._tasks.slots.head_parameters()):
                    total.backward(retain_graph=retain_graph)
        return weights

    def _through(
        self,
        points: Sequence[Tensor],
        losses: Sequence[Tensor],
        table: Tensor,
        factor: Tensor | None,
        retain_graph: bool,
    ) -> Tensor:
        """Weights by the gradients of a representation, whose combination then goes through the trunk."""
        with together(self._ranks):
            rows = [
                self._by_features(points, loss, heads, retain_graph or task + 1 < len(losses))
                for task, (loss, heads) in enumerate(zip(losses, self._tasks.slots.heads(0), strict=True))
            ]
        if self._ranks is not None:
            self._ranks.agree(self._call("gradients by features"))
        stacked = [torch.stack(grads) for grads in zip(*rows, strict=True)]
        grams = torch.stack([gram_of(grads) for grads in stacked])
        if self._ranks is not None:  # each rank has the features of its own samples, in a mean over the ranks
            grams = self._ranks.add_(grams) / self._ranks.size**2
        weights = self._weigh(table, grams, factor, [grads.dtype for grads in stacked])
        combined = [torch.tensordot(weights[0].to(grads), grads, 1) for grads in stacked]
        with self._averaged():
            torch.autograd.backward(list(points), combined, retain_graph=retain_graph)
        return weights

    def _check_way(self, points: Sequence[Tensor]) -> None:
        weighting = self._weigher.weighting
        if self._ranks is not None and not self._store and not points and weighting.needs & READS_GRADIENTS:
            raise ValueError(
                "expected a weighting of the losses, or features=, for store=False with process_group=, got "
                f"{type(weighting).__name__}: take store=True, because it needs the averaged gradients"
            )
        if points and (weighting.per_segment or Needs.ROWS in weighting.needs):
            raise ValueError(
                f"expected a weighting of the Gram matrix or losses for features=, got {type(weighting).__name__}: "
                "leave features= out"
            )
        if any(not isinstance(z, Tensor) or not z.requires_grad for z in points):
            raise ValueError(
                "expected features as tensors of the losses' graph, got others: pass them as the trunk returns them"
            )

    @staticmethod
    def _by_features(points: Sequence[Tensor], loss: Tensor, heads: Sequence[Slot], retain_graph: bool) -> list[Tensor]:
        """The gradients of one loss by the representation; those by its heads go to their slots."""
        live = [slot for slot in heads if slot.parameter.requires_grad]
        inputs = [*points, *(slot.parameter for slot in live)]
        grads = torch.autograd.grad(loss, inputs, retain_graph=retain_graph, allow_unused=True)
        for slot, grad in zip(live, grads[len(points) :], strict=True):
            if grad is not None:
                slot.put(grad, copy=True)
        return [torch.zeros_like(z) if grad is None else grad for z, grad in zip(points, grads, strict=False)]

    # ------------------------------------------------------------------ into .grad
    def _combine(self, weights: Tensor) -> None:
        fresh = all(p.grad is None for table in self._trunks for p in table.layout.parameters)
        for index, (table, buffer) in enumerate(zip(self._tasks.tables, self._combined, strict=False)):
            out = buffer if fresh else _row(table.layout)
            self._tasks.combine_into(index, weights, out)
            reached = table.reached()
            for segment, p in enumerate(table.layout.parameters):
                if reached[segment]:
                    _add_to_grad(p, table.layout.rows_of(out, segment)[0], own=not fresh)

    @property
    def _heads(self) -> list[GradientTable]:
        return self._tasks.tables[len(self._trunks) :]

    def _fill_heads(self, weights: Tensor) -> None:
        with torch.no_grad():
            for task, slots in enumerate(self._tasks.slots.heads(0)):
                for slot in slots:
                    grad = slot.table.at(0, 0, slot.segment)
                    if grad is not None:
                        plain = self._tasks.heads == "plain"
                        weighted = grad if plain else grad * weights[0, task].to(grad)
                        _add_to_grad(slot.parameter, weighted, own=self._ranks is not None)


def _row(layout: Layout) -> Tensor:
    """Zeros [1, P] in the parameters' dtype."""
    return torch.zeros(1, layout.width, dtype=layout.dtype, device=layout.device)


def _add_to_grad(p: Tensor, grad: Tensor, *, own: bool) -> None:
    """own: the tensor is a view of something larger that does not last."""
    if p.grad is None:
        p.grad = grad.clone() if own else grad
    else:
        p.grad.add_(grad)


def _with_gram(context: WeightingContext, segments: Tensor) -> WeightingContext:
    return replace(context, gram=segments.sum(1), segments=segments)
