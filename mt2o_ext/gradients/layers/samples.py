"""Losses of single samples: one backward pass has the gradients of all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from .batches import wide
from .record import Call
from .sums import GramSums, through_autograd
from .terms import Term, joined
from .trace import Trace

__all__ = ["ApartCheck", "OfSamples"]

MOST_KEPT = 1000  # shapes that are remembered as checked


class OfSamples:
    """One call with losses of single samples.

    Args:
        trace: the graph behind them.
        scalars: T losses, or None of samples that have none.
        wanted: the parameters that the losses depend on and that are trained.
        batch_dim: the dimension of samples.
        names: of parameters and modules, for messages.

    Raises:
        ValueError: for layers that mix samples.
    """

    def __init__(
        self,
        trace: Trace,
        scalars: Sequence[Tensor | None],
        wanted: Sequence[Tensor],
        batch_dim: int,
        names: Mapping[object, str],
    ) -> None:
        self._names, self._dim = names, batch_dim
        for _, call in trace.calls:
            if call.mixes:
                raise ValueError(
                    f"expected layers that keep samples apart with batch_dim={batch_dim}, got {self._name(call)}, a "
                    f"{type(call.module).__name__} in training: put it into evaluation mode, take GroupNorm, or leave "
                    "batch_dim= out"
                )
        self._scalars = scalars
        self._present = [sample for sample, loss in enumerate(scalars) if loss is not None]
        self._size = self._samples(trace)
        uses = trace.usable(self._fits)
        self._uses = {p: uses[p] for p in wanted if p in uses}
        self._others = [p for p in wanted if p not in uses]
        numbers = {number for found in self._uses.values() for number, _ in found}
        self._calls = {number: trace.calls[number] for number in sorted(numbers)}
        self._grads: dict[int, Tensor] = {}

    def _name(self, call: Call) -> str:
        return repr(self._names.get(call.module, "?"))

    def _samples(self, trace: Trace) -> int:
        """The size of the batch: T, or less where the last tasks are absent, as most layers have it."""
        sizes = Counter(call.shape[self._dim] for _, call in trace.calls if len(call.shape) > self._dim)
        possible = [size for size in sizes if self._present[-1] < size <= len(self._scalars)]
        return max(possible, key=lambda size: (sizes[size], size), default=len(self._scalars))

    def _fits(self, call: Call) -> bool:
        place = self._dim == 0 or call.kind.batch_anywhere
        both = (call.shape, call.x.shape)
        return place and all(len(shape) > self._dim and shape[self._dim] == self._size for shape in both)

    def covers(self, leaves: Collection[Tensor]) -> bool:
        """True if the gradients of these leaves can be made by formulas, and nobody has hooks for them."""
        hooks = ("_backward_hooks", "_post_accumulate_grad_hooks")
        return len(self._uses) == len(leaves) and not any(getattr(p, name, None) for p in self._uses for name in hooks)

    @property
    def structure(self) -> tuple[object, ...]:
        """The layers in use, and the shapes of their outputs."""
        return tuple((id(call.module), call.shape) for _, call in self._calls.values())

    @property
    def count(self) -> int:
        """T."""
        return len(self._scalars)

    @property
    def in_16_bits(self) -> bool:
        """True if an output has 16 bits."""
        return any(call.dtype.itemsize == 2 for _, call in self._calls.values())

    def _points(self) -> list[GradientEdge]:
        return [GradientEdge(node, call.output_nr) for node, call in self._calls.values()]

    def add_others(self, sums: GramSums, *, batched: bool) -> None:
        """Add the Gram matrices by parameters without a formula."""
        there = [loss for loss in self._scalars if loss is not None]
        tasks = torch.tensor(self._present, dtype=torch.int64, device=sums.values.device)
        through_autograd(there, self._others, (), lambda p, gram: sums.add(p, gram, "autograd", tasks), batched=batched)

    def backward(self, outputs: Sequence[Tensor], *, retain_graph: bool) -> None:
        """Find the gradients of the losses' sum by the output of each layer."""
        self._grads = self._pass(outputs, [torch.ones_like(output) for output in outputs], retain_graph)

    def _pass(self, outputs: Sequence[Tensor], factors: Sequence[Tensor], retain_graph: bool) -> dict[int, Tensor]:
        if not self._calls:
            return {}
        grads = torch.autograd.grad(outputs, self._points(), factors, retain_graph=retain_graph, allow_unused=True)
        return {number: grad for number, grad in zip(self._calls, grads, strict=True) if grad is not None}

    def _first(self, tensor: Tensor) -> Tensor:
        """The tensor with the samples in dimension 0."""
        return tensor.movedim(self._dim, 0)

    def check(self, outputs: Sequence[Tensor], factors: Tensor, *, retain_graph: bool) -> None:
        """Check, after `backward`, that gradients with factors of the losses are the gradients times these factors.

        Args:
            outputs: as of `backward`.
            factors: float64 [T].
            retain_graph: as in ``torch.autograd.backward``.

        Raises:
            ValueError: if they are not: then a loss depends on another sample than its own.
        """
        each = factors if len(outputs) == 1 and outputs[0].dim() == 1 else factors[self._present]
        given = [each] if outputs[0].dim() == 1 else each.unbind()
        mixed = self._pass(outputs, [f.to(output) for f, output in zip(given, outputs, strict=True)], retain_graph)
        wrong = []
        for number, grad in self._grads.items():
            dtype = torch.promote_types(grad.dtype, torch.float32)
            plain, other = (self._first(side).to(dtype).flatten(1) for side in (grad, mixed[number]))
            error = (other - plain * factors[: self._size].to(plain).unsqueeze(1)).abs().amax(1)
            sizes = plain.abs().amax(1)
            allowed = _tolerance(grad.dtype) * (sizes + 1e-3 * sizes.max()) + torch.finfo(grad.dtype).smallest_normal
            wrong.append((error > allowed).any())
        found = torch.stack(wrong).tolist() if wrong else []
        if True in found:
            call = self._calls[list(self._grads)[found.index(True)]][1]
            raise ValueError(
                f"expected loss i to depend on sample i alone, with samples in dimension {self._dim} of all inputs and "
                f"outputs, but at the output of {self._name(call)} {list(call.shape)} other samples have a part in a "
                "loss: use layers that keep samples apart and are batch-first, or leave batch_dim= out"
            )

    def add_grams(self, sums: GramSums) -> None:
        """Add the Gram matrices by formula, after `backward`."""
        terms: dict[Tensor, list[Term]] = {}
        awaited = {p: sum(number in self._grads for number, _ in found) for p, found in self._uses.items()}
        for number in self._grads:
            call = self._calls[number][1]
            own = {name: p for name, p in call.parameters.items() if p in self._uses}
            x, grad = self._factors(call, self._grads[number])
            for name, term in call.kind.terms(call.module, x, grad, own).items():
                p = own[name]
                terms.setdefault(p, []).append(term)
                if len(terms[p]) == awaited[p]:
                    whole = joined(terms.pop(p))
                    sums.add(p, whole.gram(), whole.way)

    def _factors(self, call: Call, grad: Tensor) -> tuple[Tensor, Tensor]:
        return self._first(wide(call.x, call.dtype)), self._first(wide(grad, call.dtype))

    @torch.no_grad()
    def add_to_grad(self, weights: Tensor) -> None:
        """Add the gradients, combined with weights float64 [T], to ``.grad`` of the parameters; at most once."""
        totals: dict[Tensor, Tensor] = {}
        for number, (_, call) in self._calls.items():
            if (plain := self._grads.pop(number, None)) is None:
                continue
            own = {name: p for name, p in call.parameters.items() if p in self._uses}
            x, grad = self._factors(call, plain)
            weighted = grad * weights[: self._size].to(grad).view(-1, *(1,) * (grad.dim() - 1))
            for name, total in call.kind.combined(call.module, x, weighted, own).items():
                p = own[name]
                totals[p] = total if p not in totals else totals[p].reshape(total.shape) + total
        for p, total in totals.items():
            grad = total.reshape(p.shape).to(p.dtype)
            p.grad = grad if p.grad is None else p.grad.add_(grad)

    def forget(self) -> None:
        """Drop the gradients."""
        self._grads = {}


def _tolerance(dtype: torch.dtype) -> float:
    """The rounding of backward passes in this type, relative to the gradients of a sample."""
    return {torch.float64: 1e-9, torch.float32: 1e-4}.get(dtype, 1e-2)


class ApartCheck:
    """A memory of which structures were checked, and the times when it is done again."""

    def __init__(self) -> None:
        self._seen: dict[tuple[object, ...], int] = {}
        self._calls = 0

    def due(self, samples: OfSamples) -> Tensor | None:
        """Random factors of the losses, float64 [T], or None where no check is due."""
        self._calls += 1
        digits = str(self._calls)
        again = digits[0] == "1" and set(digits[1:]) <= {"0"}
        if not again and samples.structure in self._seen:
            return None
        generator, size = torch.Generator().manual_seed(self._calls), (samples.count,)
        if samples.in_16_bits:  # powers of two leave rounding as it is; no two of 16 are alike
            order = torch.randperm(samples.count, generator=generator, dtype=torch.int64)
            return (1 - 2 * (order % 2)).double() * 2.0 ** -(order // 2 % 8).double()
        signs = torch.randint(0, 2, size, generator=generator, dtype=torch.int64).double() * 2 - 1
        return signs * (1 - 0.75 * torch.rand(size, generator=generator, dtype=torch.float64))  # nothing overflows

    def passed(self, samples: OfSamples) -> None:
        """Remember that losses of this structure were found to keep samples apart."""
        if len(self._seen) >= MOST_KEPT:
            self._seen.clear()
        self._seen[samples.structure] = self._calls
