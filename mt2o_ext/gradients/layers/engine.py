"""The Gram matrix of many losses, layer by layer from activations and their gradients."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ...weighting import Weighting
from ..weigher import READS_GRADIENTS
from .batches import of_batches
from .kind import kind_of
from .record import record_call
from .samples import ApartCheck, OfSamples
from .sums import GramSums
from .trace import Trace, traced

__all__ = ["LayerEngine", "Measurement", "check_engine"]


class Measurement(NamedTuple):
    """The Gram matrices of one call.

    grams: float64 [S, T, T] of each parameter, or [1, T, T] of all.
    samples: with which the combined gradient can be made at once; None: it takes another backward pass.
    """

    grams: Tensor
    samples: OfSamples | None = None


class LayerEngine:
    """A way to the Gram matrix J J^T of many losses without J: from each layer's input and output gradients.

    For a linear layer y = W x the gradients of losses i and j by W have the inner product (x_i . x_j) (g_i . g_j),
    where g is the gradient by y.  Such formulas are known for `nn.Linear`, `nn.Conv1d`, `nn.Conv2d`, `nn.Conv3d`,
    `nn.Embedding`, `nn.LayerNorm`, `nn.RMSNorm`, `nn.GroupNorm` and, in evaluation mode, `nn.BatchNorm1d` and its
    like, with weights that are used several times or tied; at each layer the cheaper of two ways is taken (pairs of
    positions, or the rows of J that belong to this layer).  A gradient that also flows past such layers (a custom
    module, a penalty, a parametrization) is found by backward passes of each loss, for these parameters alone: the
    graph tells which ones they are.  `ways` tells what was done.

    Pass it to :class:`WeightedBackward` as ``engine=``.  Make it before the forward pass: it records the layers'
    inputs.

    Args:
        modules: the models, or parts of them, with the layers.
        batch_dim: the dimension of samples in all inputs and outputs of layers, for losses of single samples: loss i is
            that of sample i, T is the size of a batch (of a smaller one, pass None for the losses that are missing at
            its end), and **no sample has an influence on the loss of another one**.  Then one backward pass gives the
            gradients of all losses.  This is checked by another pass with random factors of the losses: at the first
            call, at the 10th, 100th, ..., and whenever layers are used in another way or with tensors of other shapes.
            None (default): losses of any kind, T backward passes, or one batched pass with ``collect="batched"``.

    The first derivative is taken, with the numbers of the forward pass: as in torch's own backward a tensor that was
    changed in place since is an error, or is left to autograd.  Not for sharded parameters, and not for layers under
    ``checkpoint(..., use_reentrant=True)``, whose parameters the graph does not show: these are refused.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        >>> backward = WeightedBackward(
        ...     model.parameters(), num_tasks=16, weighting="upgrad", engine=LayerEngine(model, batch_dim=0)
        ... )
        >>> x, y = torch.randn(16, 4), torch.randn(16)
        >>> backward((model(x).squeeze(1) - y).square()).shape
        torch.Size([16])
    """

    def __init__(self, *modules: nn.Module, batch_dim: int | None = None) -> None:
        if not modules or not all(isinstance(module, nn.Module) for module in modules):
            got = [type(module).__name__ for module in modules]
            raise TypeError(f"expected modules, got {got}: pass the model, or the parts of it that are trained")
        if batch_dim is not None and (isinstance(batch_dim, bool) or not isinstance(batch_dim, int) or batch_dim < 0):
            raise ValueError(f"expected batch_dim >= 0 or None, got {batch_dim!r}: pass 0 for layers of [batch, ...]")
        self._batch_dim = batch_dim
        self._names: dict[object, str] = {}
        self._hooks: list[RemovableHandle] = []
        self._records = True
        for number, module in enumerate(modules):
            prefix = f"{number}." if len(modules) > 1 else ""
            self._names |= {each: prefix + name for name, each in module.named_modules()}
            self._names |= {p: prefix + name for name, p in module.named_parameters()}
        for layer in [each for each in self._names if isinstance(each, nn.Module) and kind_of(each) is not None]:
            # A hook of its own, also where another engine has one, which may be removed first.
            self._hooks.append(layer.register_forward_hook(record_call, prepend=True, with_kwargs=True))
        weakref.finalize(self, _remove, self._hooks).atexit = False
        self._check = ApartCheck()
        self._ways: dict[str, str] = {}
        self._warned = False

    @property
    def ways(self) -> Mapping[str, str]:
        """For each parameter that the last losses depended on, how its gradients were found.

        "pairs" of positions, "rows" of the layer, "picked rows" of an embedding, or "autograd".
        """
        return dict(self._ways)

    def remove(self) -> None:
        """Takes the engine's hooks away from the modules, as its end does too; autograd finds all gradients then."""
        self._records = False
        _remove(self._hooks)

    def measure(
        self,
        losses: Tensor | Sequence[Tensor | None],
        scalars: Sequence[Tensor | None],
        parameters: Sequence[Tensor],
        *,
        apart: bool,
        batched: bool,
        alone: bool,
        retain_graph: bool,
    ) -> Measurement:
        """The Gram matrices of T losses by these parameters.

        Args:
            losses: a tensor [T], or as ``scalars``.
            scalars: the same losses one by one; None: of tasks that are absent.
            parameters: the shared ones that are trained.
            apart: a matrix for each parameter.
            batched: see `through_autograd`.
            alone: nothing else than these parameters needs a gradient of the losses' sum.
            retain_graph: keep the graph in any case.

        Raises:
            RuntimeError: for a graph that hides parameters, or is freed.
            ValueError: for losses that do not keep samples apart, with ``batch_dim``.
        """
        outputs = [losses] if isinstance(losses, Tensor) else [loss for loss in losses if loss is not None]
        trace = traced(outputs)
        self._check_graph(trace)
        wanted = [p for p in parameters if p in trace.leaves]
        sums = GramSums(parameters, len(scalars), apart=apart)
        with torch.autocast(sums.values.device.type, enabled=False):
            if self._batch_dim is None:
                of_batches(trace, scalars, wanted, sums, batched=batched)
                found = None
            else:
                samples = OfSamples(trace, scalars, wanted, self._batch_dim, self._names)
                direct = alone and samples.covers(trace.leaves)
                self._measure_samples(samples, outputs, sums, batched, direct, retain_graph)
                found = samples if direct else None
        if not retain_graph:
            trace.forget()
        self._ways = {self._names.get(p, "?"): way for p, way in sums.ways.items()}
        return Measurement(sums.values, found)

    def _check_graph(self, trace: Trace) -> None:
        if trace.hidden:
            raise RuntimeError(
                "expected a graph that shows its parameters, got layers under checkpoint(..., use_reentrant=True): "
                "take use_reentrant=False, or leave engine= out"
            )
        if trace.freed:
            raise RuntimeError(
                "expected a graph that no backward has gone through, got one a second time, whose layers' inputs are "
                "freed: pass retain_graph=True the first time"
            )
        if self._records and not trace.calls and not self._warned:
            self._warned = True
            warnings.warn(
                "no layer of the engine has a part in the losses, so all gradients are found one by one: "
                "make the LayerEngine before the forward pass, for the plain model (not for a compiled one); if the "
                "model has no layers with a formula, leave engine= out",
                UserWarning,
                stacklevel=6,
            )

    def _measure_samples(
        self,
        samples: OfSamples,
        outputs: Sequence[Tensor],
        sums: GramSums,
        batched: bool,
        direct: bool,
        retain_graph: bool,
    ) -> None:
        """One backward pass for all losses, and others for the parameters that no formula covers."""
        samples.add_others(sums, batched=batched)
        factors = self._check.due(samples)
        samples.backward(outputs, retain_graph=retain_graph or not direct or factors is not None)
        if factors is not None:
            samples.check(outputs, factors, retain_graph=retain_graph or not direct)
            self._check.passed(samples)
        samples.add_grams(sums)
        if not direct:
            samples.forget()


def _remove(hooks: list[RemovableHandle]) -> None:
    for hook in hooks:
        hook.remove()
    hooks.clear()


def check_engine(engine: Any, weighting: Weighting) -> LayerEngine | None:
    """Checks an argument ``engine``.

    Raises:
        TypeError: for anything but an engine or None.
        ValueError: for an engine that would have no effect, because the weighting reads no gradients.
    """
    if engine is not None and not isinstance(engine, LayerEngine):
        raise TypeError(
            f"expected engine= as a LayerEngine, got {engine!r:.80}: pass mt2o_ext.gradients.layers.LayerEngine(model)"
        )
    if engine is not None and not (weighting.needs & READS_GRADIENTS or weighting.per_segment):
        raise ValueError(
            f"expected no engine= with {type(weighting).__name__}, which reads no gradients, got one: leave it out"
        )
    return engine
