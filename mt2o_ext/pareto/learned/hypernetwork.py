"""Pareto hypernetworks: all weights of a target network from a preference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...checks import check_choice, check_count
from ...ops import length_accuracy
from ...scalarization import Scalarization
from ...weighting import EPO
from ..values import Numbers
from .base import LearnedFront
from .generators import Chunks, Head
from .target import Target

__all__ = ["PreferenceNetwork"]


class PreferenceNetwork(LearnedFront):
    """A Pareto hypernetwork, PHN (Navon, Shamsian, Chechik and Fetaya, ICLR 2021, arXiv 2010.04104).

    A small network turns the preference [T] into features, and a linear head for each tensor turns the features into
    the weights of the target network.

    The paper's: the network (three linear layers with ReLU between them, `hidden` wide, as the published code has
    them), preferences from Dirichlet(0.2), and two losses. PHN-LS is the weighted sum of the losses. PHN-EPO weighs
    them by `mt2o_ext.weighting.EPO` from their gradients by the *target* network's weights, which `loss` has to be
    given; our weights sum to 1, those of the published code to T. Ours: `start="template"`, all models begin as the
    template, where the published code begins with torch's default (`start="random"`), which makes target weights of a
    size that has nothing to do with their layers; generation in chunks (as von Oswald et al., ICLR 2020; the paper
    only names the idea); other scalarizations in place of the sum.

    Without chunks it has about `hidden` times as many parameters as the target network.

    Args:
        model: the target network, a template: it is copied and stays as it is. Its trainable parameters are generated;
            its frozen parameters and its buffers (statistics of BatchNorm) are kept, one of each for all preferences.
        num_tasks: T.
        hidden: width of the layers, H.
        chunk: generate this many numbers at a time, by one head for all chunks; None: one head for each tensor.
        embedding: numbers of the vector that stands for a chunk.
        start: "template" or "random".
        solver: "linear" (PHN-LS, or any `scalarization`) or "epo" (PHN-EPO).
        concentration: of the Dirichlet distribution.
        scalarization: an instance or its name, for solver="linear".

    Raises:
        TypeError: or ValueError for arguments that do not fit together.

    Example:
        >>> model = torch.nn.Linear(3, 2)
        >>> network = PreferenceNetwork(model, num_tasks=2)
        >>> x, preference = torch.ones(5, 3), network.sample(torch.Generator().manual_seed(0))
        >>> torch.equal(network(x, preference=preference), model(x))  # at the start
        True
        >>> losses = network(x, preference=preference).square().mean(0)
        >>> network.loss(losses, preference).backward()
        >>> network.at([0.3, 0.7])  # an ordinary model
        Linear(in_features=3, out_features=2, bias=True)
        >>> exact = PreferenceNetwork(model, num_tasks=2, solver="epo")
        >>> weights = exact.generate(preference)
        >>> losses = exact.call(weights, x).square().mean(0)
        >>> exact.loss(losses, preference, weights=weights).backward()
    """

    def __init__(
        self,
        model: nn.Module,
        num_tasks: int,
        *,
        hidden: int = 100,
        chunk: int | None = None,
        embedding: int = 32,
        start: str = "template",
        solver: str = "linear",
        concentration: float | Sequence[float] = 0.2,
        scalarization: Scalarization | str = "linear",
    ) -> None:
        super().__init__(num_tasks, concentration, scalarization)
        check_count("hidden", hidden)
        check_choice("start", start, ("template", "random"))
        self.solver = check_choice("solver", solver, ("linear", "epo"))
        if solver == "epo" and scalarization != "linear":
            raise ValueError(
                f'expected no scalarization with solver="epo", got {scalarization!r}: EPO weighs the losses itself'
            )
        self.target = Target(model)
        numbers = torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])
        first = numbers if start == "template" else None
        self.features = nn.Sequential(
            nn.Linear(num_tasks, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, hidden)
        )
        self.generator: Head | Chunks
        if chunk is None:
            self.generator = Head(hidden, self.target.size, first)
        else:
            check_count("chunk", chunk)
            check_count("embedding", embedding)
            self.generator = Chunks(hidden, self.target.size, chunk, embedding, first)
        for part in (self.features, self.generator):
            part.to(numbers)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, solver={self.solver!r}"

    def _anchor(self) -> Tensor:
        return next(self.features.parameters())  # not of the target, whose frozen parameters may be of any dtype

    def generate(self, preference: Numbers) -> dict[str, Tensor]:
        """Return the target network's weights for the preference [T], by name and with their graph."""
        return self.target.parts(self.generator(self.features(self._checked(preference))))

    def call(self, weights: dict[str, Tensor], *inputs: Any, **named: Any) -> Any:
        """Return the target network's output with weights of `generate`."""
        return self.target(weights, inputs, named)

    def forward(self, *inputs: Any, preference: Numbers, **named: Any) -> Any:
        """Return the target network's output for the preference [T].

        Args:
            *inputs: of the target network.
            preference: [T].
            **named: keywords of the target network.
        """
        return self.call(self.generate(preference), *inputs, **named)

    def at(self, preference: Numbers) -> nn.Module:
        """Return an ordinary model with the weights for the preference [T]: a copy that shares nothing."""
        return self.target.made(self.generate(self._chosen(preference)))

    def loss(
        self, losses: Tensor | Sequence[Tensor], preference: Tensor, *, weights: dict[str, Tensor] | None = None
    ) -> Tensor:
        """Return the loss [] of T losses at the preference [T] they were computed for.

        Args:
            losses: a tensor [T] or T scalars.
            preference: [T].
            weights: for solver="epo", those that `generate` gave for these losses. It takes T backward passes through
                the target network, and keeps its graph. Losses that are negative or not finite give NaN.
        """
        if self.solver == "linear":
            return super().loss(losses, preference)
        if weights is None:
            raise ValueError(
                'expected the weights that gave these losses, got None: with solver="epo" take them from '
                "generate(preference), run call(weights, x) and give them to loss(..., weights=weights)"
            )
        stacked, checked = self._stacked(losses), self._checked(preference)
        gram = _gram(stacked, list({id(each): each for each in weights.values()}.values()))
        factors = EPO()(
            gram,
            losses=stacked.detach().double(),
            preferences=checked.double(),
            accuracy=length_accuracy(checked.dtype),
        )
        return (factors.to(stacked) * stacked).sum()


def _gram(losses: Tensor, weights: list[Tensor]) -> Tensor:
    """float64 [T, T]: the inner products of the gradients of T losses by the weights."""
    rows = [torch.autograd.grad(loss, weights, retain_graph=True, materialize_grads=True) for loss in losses]
    gram = losses.new_zeros(len(losses), len(losses), dtype=torch.float64)
    for parts in zip(*rows, strict=True):  # of one tensor
        flat = torch.stack([part.flatten() for part in parts]).double()
        gram += flat @ flat.T
    return gram
