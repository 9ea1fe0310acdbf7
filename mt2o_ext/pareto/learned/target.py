"""A model whose trainable parameters come from outside: their names and shapes, and the model around them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

__all__ = ["Target"]


class Target(nn.Module):
    """A copy of a model without its trainable parameters, which each call is given.

    Frozen parameters and buffers stay in it. Tied parameters are one tensor with several names.

    Args:
        model: any module; it stays as it is.

    Raises:
        ValueError: for a model without trainable parameters.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(f"expected model as an nn.Module, got {type(model).__name__}: give the target network")
        self.model = copy.deepcopy(model)
        names: dict[nn.Parameter, list[str]] = {}
        for name, p in self.model.named_parameters(remove_duplicate=False):
            if p.requires_grad:
                names.setdefault(p, []).append(name)
        if not names:
            raise ValueError("expected a model with trainable parameters, got none: set requires_grad of some")
        self.names = list(names.values())
        self.shapes = [p.shape for p in names]
        dtypes = {p.dtype for p in names}
        if len(dtypes) > 1:
            raise ValueError(
                f"expected trainable parameters of one dtype, got {sorted(map(str, dtypes))}: convert the model"
            )
        for name in (name for tied in self.names for name in tied):
            module, _, last = name.rpartition(".")
            self.model.get_submodule(module).register_parameter(last, None)

    @property
    def size(self) -> int:
        """P: the numbers of all trainable parameters."""
        return sum(shape.numel() for shape in self.shapes)

    def parts(self, numbers: Tensor) -> dict[str, Tensor]:
        """Return the parameters by name, as parts of numbers [P]; tied ones are the same tensor."""
        pieces = numbers.split([shape.numel() for shape in self.shapes])
        found: dict[str, Tensor] = {}
        for piece, shape, names in zip(pieces, self.shapes, self.names, strict=True):
            found |= dict.fromkeys(names, piece.view(shape))
        return found

    def forward(self, weights: dict[str, Tensor], inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Return the model's output with these weights."""
        recurrent = [module for module in self.model.modules() if isinstance(module, nn.RNNBase)]
        try:
            _forget_weights(recurrent)
            return functional_call(self.model, weights, inputs, named, tie_weights=False)
        finally:
            _forget_weights(recurrent)

    @torch.no_grad()
    def made(self, weights: dict[str, Tensor]) -> nn.Module:
        """Return an ordinary model with copies of these weights as its parameters."""
        model = copy.deepcopy(self.model)
        for names in self.names:
            parameter = nn.Parameter(weights[names[0]].detach().clone())
            for name in names:
                module, _, last = name.rpartition(".")
                setattr(model.get_submodule(module), last, parameter)
        return model


def _forget_weights(recurrent: list[nn.RNNBase]) -> None:
    """Lets recurrent layers look for their weights anew.

    They keep a list of those that they saw last, which would hold a graph and could not be copied, and compare it with
    the present ones.
    """
    for module in recurrent:
        if any(getattr(module, name) is None for name in module._flat_weights_names):
            count = len(module._flat_weights_names)
            module._flat_weights = [None] * count
            references: Any = [_gone] * count
            module._flat_weight_refs = references


def _gone() -> None:
    """A weak reference to a weight that is no more."""
