"""The ways from T losses to their weighted gradient in ``.grad``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..ranks import together
from ..weighting import Needs
from ..weighting.judging import Measured
from .averaged import Averages
from .collect import collect_gram, collect_sequential, grads_kept, weighted_sum
from .features import FeatureGradients
from .into_grad import IntoGrad
from .layers.engine import LayerEngine
from .losses import TaskLosses
from .passes import Pass
from .table import GradientTable
from .tasks import Batch, TaskGradients
from .weigher import READS_GRADIENTS, Weigher

__all__ = ["Ways"]

Losses = Tensor | Sequence[Tensor | None]


class Ways(NamedTuple):
    """The parts of a `WeightedBackward`; each way returns the weights, float64 [1, T] or [1, S, T].

    tasks: the task gradients, with their weigher.  averages: over the ranks.  into_grad: adds what was combined.
    engine: of the Gram matrix by layers, or None.

    Of the arguments of all ways, ``table`` is the losses, float64 [1, T], with zeros of tasks that are ``absent``;
    ``factor`` is that of a GradScaler, or None.
    """

    tasks: TaskGradients
    averages: Averages
    into_grad: IntoGrad
    engine: LayerEngine | None

    @property
    def weigher(self) -> Weigher:
        """The weighting at work."""
        return self.tasks.weigher

    @torch.no_grad()
    def _weigh(
        self,
        table: Tensor,
        absent: frozenset[int],
        segments: Tensor | None,
        factor: Tensor | None,
        dtypes: Sequence[torch.dtype] = (),
    ) -> Tensor:
        """float64 [1, T] or [1, S, T], from losses [1, T] and Gram matrices [S, T, T] of scaled gradients.

        dtypes: of the gradients, where they are not the parameters'.
        """
        grams = None if segments is None else segments.unsqueeze(0)
        measured = Measured(grams=grams, factor=None if factor is None else factor.reshape(1).float())
        context = self.weigher.context(table, dtypes, measured=measured, present=self.tasks.present(absent))
        return self.weigher.weighting.weights(context)

    def from_buffer(self, table: Tensor, absent: frozenset[int], factor: Tensor | None) -> Tensor:
        """T gradients in the buffer, their Gram matrix, their combination."""
        self.averages.of_tables_(self.tasks.tables)
        with torch.no_grad():
            batch = Batch(absent=absent)
            factor = None if factor is None else factor.reshape(1)
            self.tasks.transform(batch, table, None, factor)
            weighed = self.tasks.weigh(batch, table, None, factor)
            applied = torch.where(weighed.weights.isnan(), torch.nan, weighed.applied)  # nothing is hidden
        self.into_grad.add_shared(applied)
        return weighed.weights

    def in_two_passes(
        self,
        given: TaskLosses,
        losses: Sequence[Tensor | None],
        table: Tensor,
        way: Pass,
        whole: Losses | None,
        factor: Tensor | None,
    ) -> Tensor:
        """The weights first (of the losses, or of a Gram matrix that is added up on the way), then one backward.

        whole: the losses, as they came or with the factor of a scaler.
        """
        segments = None
        reads, samples = bool(self.weigher.due() & READS_GRADIENTS), None
        if reads and self.engine is not None:
            assert whole is not None
            segments, samples = self.engine.measure(
                whole, losses, self._shared(),
                apart=Needs.SEGMENTS in self.weigher.due(), batched=self.tasks.collecting == "batched",
                alone=not self.tasks.slots.head_parameters(), retain_graph=way.retain_graph,
            )  # fmt: skip
        elif reads:
            there = torch.stack([loss for loss in given.each if loss is not None])
            segments = collect_gram(there, [p for table in self.tasks.trunks for p in table.layout.parameters])
            segments = self._of_all_tasks(segments, given.absent)
        weights = self._weigh(table, given.absent, segments, None if self.engine is None else factor)
        if samples is not None:
            samples.add_to_grad(weights[0])
            return weights
        parameters = self._shared()
        with self.averages.of_grad(parameters):
            if any(self.tasks.slots.heads(0)):
                short = not self.averages.sharded  # whose shards a whole backward completes only
                heads = self.tasks.slots.heads(0)
                collect_sequential(losses, heads, () if short else parameters, short=short, way=way.keeping())
            if parameters:
                total = weighted_sum(losses, weights[0])
                with grads_kept(self.tasks.slots.head_parameters()):
                    way.run(total)
        self.averages.of_tables_(self._heads)
        return weights

    def through(
        self,
        points: Sequence[Tensor],
        losses: Sequence[Tensor | None],
        table: Tensor,
        absent: frozenset[int],
        factor: Tensor | None,
        way: Pass,
    ) -> Tensor:
        """Weights by the gradients of a representation, whose combination then goes through the trunk."""
        with together(self.averages.ranks):
            gradients = FeatureGradients(points, losses, self.tasks.slots.heads(0), retain_graph=way.retain_graph)
        self.averages.agree("gradients by features")
        weights = self._weigh(table, absent, gradients.grams(self.averages.ranks), factor, gradients.dtypes)
        with self.averages.of_grad(self._shared()):
            gradients.backward(weights[0], retain_graph=way.retain_graph)
        self.averages.of_tables_(self._heads)
        return weights

    def _of_all_tasks(self, grams: Tensor, absent: frozenset[int]) -> Tensor:
        """float64 [S, T, T] from the Gram matrices [S, P, P] of the others; zeros for those that are absent."""
        present = self.tasks.present(absent)
        if present is None:
            return grams
        wide = grams.new_zeros(len(grams), len(present), self.tasks.num_tasks).index_copy(2, present, grams)
        return grams.new_zeros(len(grams), self.tasks.num_tasks, self.tasks.num_tasks).index_copy(1, present, wide)

    def _shared(self) -> list[Tensor]:
        """The shared parameters that are trained."""
        return [p for table in self.tasks.trunks for p in table.layout.parameters if p.requires_grad]

    @property
    def _heads(self) -> list[GradientTable]:
        return self.tasks.tables[len(self.tasks.trunks) :]
