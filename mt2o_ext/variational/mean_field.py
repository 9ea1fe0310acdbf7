"""Modules whose parameters are independent normal distributions."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..checks import check_count, check_positive
from ..gradients.options import check_generator

__all__ = ["MeanField", "softplus_inverse"]

PUBLISHED_STD = math.log1p(math.exp(-3.0))  # softplus(-3)


class MeanField(nn.Module):
    """A module whose parameters are independent normal distributions, N(mean, std^2) with std = softplus(rho).

    In training each call draws weights, mean + std * noise, and gradients reach both mean and rho (reparametrisation,
    Kingma and Welling, ICLR 2014; for weights, Blundell et al., ICML 2015). In evaluation a call takes the means, so
    that results do not depend on chance; `outputs` gives the outputs for several draws.

    The posterior of a task's layers in variational multi-task learning (VMTL, arXiv 2111.05323), with its std and its
    start of rho, -3 (std 0.0486). Ours: any module, all of its parameters, and means in evaluation.

    Args:
        module: its parameters become the means, and stay where they are; it is not copied. Buffers stay what they are.
        std: of all parameters at the start.
        generator: of the noise, on the device of the parameters; None: torch's default one, as for dropout. Its state
            belongs into your checkpoints.

    Raises:
        TypeError: for anything but a module, and for parameters that are not of floating point.
        ValueError: for a module without parameters or with some that have no size yet, and for std <= 0.

    Example:
        >>> head = MeanField(torch.nn.Linear(3, 2))
        >>> x = torch.ones(4, 3)
        >>> torch.equal(head(x), head(x))  # two draws
        False
        >>> head.outputs(x, draws=10).shape
        torch.Size([10, 4, 2])
        >>> torch.equal(head.eval()(x), head.module(x))
        True
    """

    def __init__(
        self, module: nn.Module, *, std: float = PUBLISHED_STD, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise TypeError(f"expected module as an nn.Module, got {type(module).__name__}: give a layer or a network")
        check_positive("std", std)
        check_generator(generator)
        named = dict(module.named_parameters())
        _check_parameters(module, named)
        self.module = module
        self.names = list(named)
        self.generator = generator
        rho = softplus_inverse(torch.tensor(std, dtype=torch.float64)).item()
        self.rho = nn.ParameterList(nn.Parameter(torch.full_like(p, rho)) for p in named.values())

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Return the module's output, with drawn weights in training and with the means in evaluation."""
        return self._output(inputs, named) if self.training else self.module(*inputs, **named)

    def outputs(self, *inputs: Any, draws: int = 10, **named: Any) -> Tensor:
        """Return the outputs for several draws of the weights, [draws, ...], in training and in evaluation.

        Args:
            *inputs: of the module, whose output is a tensor.
            draws: the number of draws; the published one is 10.
            **named: keywords of the module.
        """
        return torch.stack([self._output(inputs, named) for _ in range(check_count("draws", draws))])

    def _output(self, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        return functional_call(self.module, self.drawn(), inputs, named)

    def drawn(self) -> dict[str, Tensor]:
        """Return new weights by their names in the module, with their graph."""
        found = {}
        for name, mean, std in zip(self.names, self.means(), self.stds(), strict=True):
            noise = torch.empty_like(mean).normal_(generator=self.generator)
            found[name] = mean + std * noise
        return found

    def means(self) -> list[Tensor]:
        """Return the parameters of the module, in the order of ``names``."""
        return [self.module.get_parameter(name) for name in self.names]

    def stds(self) -> list[Tensor]:
        """Return the standard deviations, of the shapes of `means`, with their graph."""
        return [nn.functional.softplus(rho) for rho in self.rho]

    def posterior(self) -> tuple[Tensor, Tensor]:
        """Return mean and variance of all parameters as two vectors [P], with their graph."""
        means = torch.cat([mean.flatten() for mean in self.means()])
        return means, torch.cat([std.flatten() for std in self.stds()]).square()

    @torch.no_grad()
    def set_posterior(self, mean: Tensor, variance: Tensor) -> None:
        """Writes mean and variance [P] of all parameters, in the order of `posterior`."""
        sizes = [p.numel() for p in self.rho]
        parts = zip(self.means(), self.rho, mean.split(sizes), variance.sqrt().split(sizes), strict=True)
        for own_mean, rho, new_mean, new_std in parts:
            own_mean.copy_(new_mean.view_as(own_mean))
            rho.copy_(softplus_inverse(new_std).view_as(rho))


def softplus_inverse(value: Tensor) -> Tensor:
    """The number whose softplus, log(1 + e^x), is `value` > 0."""
    return value + torch.log(-torch.expm1(-value))


def _check_parameters(module: nn.Module, named: dict[str, nn.Parameter]) -> None:
    if not named:
        raise ValueError(f"expected a module with parameters, got {type(module).__name__} without any: wrap another")
    for name, p in named.items():
        if isinstance(p, nn.parameter.UninitializedParameter):
            raise ValueError(f"expected parameters with a size, got {name} without: call the module once before")
        if not p.is_floating_point():
            raise TypeError(f"expected parameters of floating point, got {name} of {p.dtype}: wrap another module")
