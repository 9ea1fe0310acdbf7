"""All K subproblems in one forward pass."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["SubproblemBank"]


class SubproblemBank(nn.Module):
    """K copies of a model as one module: every parameter and buffer gets a leading dimension K, and a call runs all
    copies at once through ``torch.func.vmap``.  For small models, where K forward passes one by one leave the machine
    idle.

        bank = SubproblemBank(model, num_subproblems=5)
        optimizer = MT2OFused(bank.parameters(), num_tasks=2, num_subproblems=5, stacked=True)
        losses = task_losses(bank(x), y)        # x [K, B, ...] (see mt2o_ext.stack) -> losses [K, T]

    Args:
        model: the model; it is copied, not changed.
        num_subproblems: K.

    A shared batch [B, ...] goes through all copies with ``bank(x, shared=True)``.
    """

    def __init__(self, model: nn.Module, num_subproblems: int) -> None:
        super().__init__()
        if num_subproblems < 1:
            raise ValueError(f"num_subproblems must be at least 1, not {num_subproblems}")
        if not any(True for _ in model.parameters()):
            raise ValueError("expected a model with parameters, got one without")
        self.num_subproblems = num_subproblems
        # Kept out of the module's children: its parameters are shape and code, the values are ours.
        object.__setattr__(self, "_template", copy.deepcopy(model))
        self._template: nn.Module
        self._keys: dict[str, str] = {}
        for name, parameter in model.named_parameters():
            rows = parameter.detach().expand(num_subproblems, *parameter.shape).clone()
            self.register_parameter(self._key(name), nn.Parameter(rows, requires_grad=parameter.requires_grad))
        saved = model.state_dict().keys()
        for name, buffer in model.named_buffers():
            rows = buffer.detach().expand(num_subproblems, *buffer.shape).clone()
            self.register_buffer(self._key(name), rows, persistent=name in saved)

    def _key(self, name: str) -> str:
        key = name.replace(".", "/")  # a dot would mean a submodule
        self._keys[key] = name
        return key

    def _tensors(self) -> dict[str, Tensor]:
        named = [*self.named_parameters(recurse=False), *self.named_buffers(recurse=False)]
        return {self._keys[key]: tensor for key, tensor in named}

    def forward(self, *inputs: Any, shared: bool = False, **options: Any) -> Any:
        """Outputs of all copies, with a leading dimension K.

        inputs: tensors [K, B, ...], one batch for each copy; [B, ...] with ``shared``.  options: passed to each copy as
        they are.  Random layers (dropout) draw anew for each copy.  Raises ValueError where the leading dimension is
        not K.
        """
        if not shared:
            for tensor in inputs:
                if isinstance(tensor, Tensor) and (tensor.dim() == 0 or tensor.shape[0] != self.num_subproblems):
                    raise ValueError(
                        f"expected inputs with a leading dimension {self.num_subproblems} (one batch for each "
                        f"subproblem, see mt2o_ext.stack), got {list(tensor.shape)}; pass shared=True for one for all"
                    )

        def call(tensors: dict[str, Tensor], *arguments: Any) -> Any:
            return torch.func.functional_call(self._template, tensors, arguments, options)

        in_dims = (0, *([None if shared else 0] * len(inputs)))
        return torch.func.vmap(call, in_dims=in_dims, randomness="different")(self._tensors(), *inputs)

    @contextmanager
    def subproblem(self, k: int) -> Iterator[nn.Module]:
        """An ordinary model with the parameters and buffers of subproblem k, a copy: for evaluation and for saving."""
        if not 0 <= k < self.num_subproblems:
            raise IndexError(f"expected a subproblem 0 .. {self.num_subproblems - 1}, got {k}")
        model = copy.deepcopy(self._template)
        rows = self._tensors()
        with torch.no_grad():
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
                tensor.copy_(rows[name][k])
        yield model

    def train(self, mode: bool = True) -> SubproblemBank:
        self._template.train(mode)
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> SubproblemBank:
        self._template._apply(fn, recurse)
        super()._apply(fn, recurse)
        return self
