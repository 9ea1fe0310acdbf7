"""All K subproblems in one forward pass."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .checks import check_index

__all__ = ["SubproblemBank"]


class SubproblemBank(nn.Module):
    """K copies of a model as one module, for small models, where K forward passes one by one leave the machine idle.

    Every parameter and buffer gets a leading dimension K, and a call runs all copies at once through
    ``torch.func.vmap``.

        bank = SubproblemBank(model, num_subproblems=5)
        optimizer = MT2OFused(bank.parameters(), num_tasks=2, num_subproblems=5, stacked=True)
        losses = task_losses(bank(x), y)        # x [K, B, ...] (see mt2o_ext.stack) -> losses [K, T]

    Args:
        model: the model; it is copied, not changed.
        num_subproblems: K.

    A shared batch [B, ...] goes through all copies with ``bank(x, shared=True)``.

    On vertices, the default front of :class:`MT2OFused`, the copies are the random points of the step that comes next.
    ``with optimizer.all_subproblems():`` makes them the K subproblems, to evaluate and to save.
    """

    def __init__(self, model: nn.Module, num_subproblems: int) -> None:
        super().__init__()
        if num_subproblems < 1:
            raise ValueError(f"expected num_subproblems >= 1, got {num_subproblems}: raise it")
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

    def forward(self, *inputs: Any, shared: bool | Sequence[str] = False, **options: Any) -> Any:
        """Outputs of all copies, with a leading dimension K.

        Args:
            *inputs: tensors [K, B, ...] of any dtype, one batch for each copy; what is no tensor is passed to each copy
                as it is.
            shared: True: all tensors go to each copy whole, [B, ...]; or the names of the keywords that do.
            **options: as the inputs, by keyword.

        Random layers (dropout) draw anew for each copy.

        Raises:
            ValueError: if a leading dimension is not K, or ``shared`` names no keyword.
        """
        names = () if isinstance(shared, bool) else tuple(shared)
        if unknown := [name for name in names if name not in options]:
            raise ValueError(f"expected shared= to name keywords of this call, {list(options)}, got {unknown}")
        whole = [*([shared is True] * len(inputs)), *(shared is True or name in names for name in options)]
        given = [*inputs, *options.values()]
        in_dims = [None if not isinstance(value, Tensor) or one else 0 for value, one in zip(given, whole, strict=True)]
        for value, dim in zip(given, in_dims, strict=True):
            if dim == 0 and (value.dim() == 0 or value.shape[0] != self.num_subproblems):
                raise ValueError(
                    f"expected inputs with a leading dimension {self.num_subproblems} (one batch for each "
                    f"subproblem, see mt2o_ext.stack), got {list(value.shape)}; pass shared=True for one for all, or "
                    "the names of keywords"
                )

        def call(tensors: dict[str, Tensor], *values: Any) -> Any:
            by_name = dict(zip(options, values[len(inputs) :], strict=True))
            return torch.func.functional_call(self._template, tensors, values[: len(inputs)], by_name)

        return torch.func.vmap(call, in_dims=(0, *in_dims), randomness="different")(self._tensors(), *given)

    @contextmanager
    def subproblem(self, k: int) -> Iterator[nn.Module]:
        """An ordinary model with the parameters and buffers of copy k, for evaluation and for saving; itself a copy."""
        k = check_index("subproblem", k, self.num_subproblems)
        model = copy.deepcopy(self._template)
        rows = self._tensors()
        with torch.no_grad():
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
                tensor.copy_(rows[name][k])
        yield model

    def train(self, mode: bool = True) -> SubproblemBank:
        """Puts all copies into training mode, or into evaluation mode (False)."""
        self._template.train(mode)
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> SubproblemBank:
        self._template._apply(fn, recurse)
        super()._apply(fn, recurse)
        return self
