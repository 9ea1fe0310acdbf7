"""COSMOS: one network that sees the preference beside its input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...scalarization import COSMOS, Scalarization
from ..values import Numbers
from .base import Fixed, LearnedFront

__all__ = ["PreferenceInput"]


class PreferenceInput(LearnedFront):
    """One network whose input is joined with the preference (Ruchte and Grabocka, ICDM 2021, arXiv 2103.13392).

    The T numbers of the preference become T features more of a vector [B, F], or T constant channels more of images
    [B, C, H, W]; in general T constant slices more along `dim`. Training costs what one model costs.

    The paper's: preferences from Dirichlet(1.2), the loss of `COSMOS` (lam 2; 8 on Fashion and MNIST). The published
    code differs for images: it makes the channels of the preference by two learned transposed convolutions and an
    upsampling. Constant channels are ours, and so are other scalarizations.

    Args:
        model: any module whose first layer takes T features or channels more than the data have. It is trained as it
            is, not copied.
        num_tasks: T.
        dim: of the first input, along which the preference is joined.
        concentration: of the Dirichlet distribution.
        scalarization: an instance or its name; `COSMOS` needs its `lam` chosen for the losses at hand.

    Raises:
        TypeError: or ValueError for arguments that do not fit together.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1 + 2, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(),
        ...                             torch.nn.Linear(4 * 36, 2))
        >>> network = PreferenceInput(model, num_tasks=2)
        >>> images, generator = torch.ones(5, 1, 8, 8), torch.Generator().manual_seed(0)
        >>> optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
        >>> for _ in range(3):
        ...     preference = network.sample(generator)
        ...     losses = network(images, preference=preference).square().mean(0)
        ...     optimizer.zero_grad()
        ...     network.loss(losses, preference).backward()
        ...     optimizer.step()
        >>> network.front(lambda model: model(images).square().mean(0), rays=5).losses.shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        model: nn.Module,
        num_tasks: int,
        *,
        dim: int = 1,
        concentration: float | Sequence[float] = 1.2,
        scalarization: Scalarization | str | None = None,
    ) -> None:
        super().__init__(num_tasks, concentration, COSMOS() if scalarization is None else scalarization)
        if not isinstance(model, nn.Module):
            raise TypeError(f"expected model as an nn.Module, got {type(model).__name__}: give the network to train")
        if not any(True for _ in model.parameters()):
            raise ValueError("expected a model with parameters, got one without: give the network to train")
        self.model = model
        self.dim = dim

    def forward(self, inputs: Tensor, *more: Any, preference: Numbers, **named: Any) -> Any:
        """Return the model's output for the preference [T].

        Args:
            inputs: the tensor that the preference is joined to, floating point.
            *more: other inputs of the model, as they are.
            preference: [T].
            **named: keywords of the model.
        """
        return self.model(self.joined(inputs, preference), *more, **named)

    def joined(self, inputs: Tensor, preference: Numbers) -> Tensor:
        """Return inputs [B, C, ...] as [B, C + T, ...]; see `dim`."""
        if not inputs.is_floating_point():  # the preference would be rounded to 0
            raise TypeError(f"expected inputs of floating point, got {inputs.dtype}: convert them, inputs.float()")
        tensor = self._checked(preference).to(inputs)
        if not -inputs.ndim <= self.dim < inputs.ndim or self.dim % inputs.ndim == 0:
            raise ValueError(
                f"expected inputs [B, ...] with a dimension {self.dim} behind the first one, got the shape "
                f"{tuple(inputs.shape)}: give a batch, or another dim="
            )
        dim = self.dim % inputs.ndim
        shape = list(inputs.shape)
        shape[dim] = self.num_tasks
        along = tensor.view([self.num_tasks if each == dim else 1 for each in range(inputs.ndim)])
        return torch.cat([inputs, along.expand(shape)], dim)

    def at(self, preference: Numbers) -> nn.Module:
        """Return this network with the preference [T] fixed: a module that takes inputs only and shares its weights."""
        return Fixed(self, self._chosen(preference))
