"""Losses that every optimizer of two tasks refuses, with the error that it raises and a word of its text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from support.optim.problems import task_losses


def losses_of(model: nn.Module) -> Tensor:
    return task_losses(model(x := torch.randn(4, 7)), x[:, 0])


LOSSES: dict[str, tuple[Callable[[nn.Module], Any], type[Exception], str]] = {
    "too few": (lambda model: [losses_of(model)[0]], ValueError, "shape"),
    "too many": (lambda model: [*losses_of(model), losses_of(model)[0]], ValueError, "shape"),
    "none": (lambda model: [], ValueError, "shape"),
    "not scalars": (lambda model: [model(torch.randn(4, 7))[:, 0], losses_of(model)[0]], ValueError, "scalar"),
    "detached": (lambda model: losses_of(model).detach(), ValueError, "graph"),
    "numbers": (lambda model: [1.0, 2.0], TypeError, "tensors"),
    "one number": (lambda model: 1.0, TypeError, "losses"),
    "nothing": (lambda model: None, TypeError, "losses"),
}
