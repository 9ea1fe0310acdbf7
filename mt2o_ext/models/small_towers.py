"""Small towers beside the heads of a model (self-auxiliaries): the towers, and the losses with them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_count, check_per_task, per_task

__all__ = ["self_auxiliary", "with_auxiliaries"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def self_auxiliary(head: nn.Module, shrink: int = 4) -> nn.Module:
    """Return a new tower beside `head`, with the same inputs and outputs and hidden layers `shrink` times as narrow.

    Of "Small towers make big differences" (Wang et al., 2020, arXiv 2008.05808): every task gets a second, much smaller
    tower on the shared representation, trained with the same labels and the same loss (`with_auxiliaries`) and dropped
    afterwards. It is too small to fit its task by itself, so it asks the shared layers for better features. The
    definition is from a detailed reading of the paper, not from the paper; to build the tower from the head, layer by
    layer, is ours.

    The parameters are new: torch's default start, on the device and in the dtype of the head.

    Args:
        head: an nn.Sequential (also of such) of linear layers, convolutions without groups, BatchNorm and LayerNorm,
            and of modules without parameters, which are copied. It stays as it is.
        shrink: divides the widths of the hidden layers, of which at least 1 is left.

    Raises:
        ValueError: for a head without hidden layers, or with layers of other kinds.

    Example:
        >>> head = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
        >>> self_auxiliary(head)
        Sequential(
          (0): Linear(in_features=64, out_features=8, bias=True)
          (1): ReLU()
          (2): Linear(in_features=8, out_features=10, bias=True)
        )
    """
    check_count("shrink", shrink)
    layers = list(_layers(head))
    weighted = [layer for layer in layers if isinstance(layer, (nn.Linear, *_CONVOLUTIONS))]
    if len(weighted) < 2:
        raise ValueError(
            f"expected a head with a hidden layer, an nn.Sequential of two linear layers or more, got {len(weighted)}: "
            "write the smaller tower yourself"
        )
    widths = _Widths(shrink, weighted[-1])
    return nn.Sequential(*(_shrunk(layer, widths) for layer in layers))


def with_auxiliaries(
    losses: Tensor | Sequence[Tensor], auxiliary_losses: Tensor | Sequence[Tensor], gamma: float | Sequence[float]
) -> Tensor:
    """Return the T losses of a model with small towers: l_t + gamma l_t^aux, a tensor [T].

    **The rows are added first, then weighed.** A weighting of task gradients sees T rows g_t + gamma g_t^aux, not 2 T:
    J' = E J with E = [I, gamma I], so its Gram matrix is Q' = E Q E^T of the 2 T x 2 T matrix Q of all. That is the
    paper's loss, sum_t w_t (l_t + gamma l_t^aux), with any weights w. Handing all 2 T losses to the weighting is
    another method: a task would compete with its own small tower.

    Each tower belongs to its task: both towers of task t go into the parameter group with ``"task": t``, where the
    gradient of either is that of its own loss (times gamma for the small one), and the other is not in its way.

    Args:
        losses: of the main towers, T scalars or a tensor [T].
        auxiliary_losses: of the small towers, likewise.
        gamma: weight of the small towers, not negative: one number, or one for each task.

    Raises:
        TypeError: for losses that are no tensors, such as the None of a task without data.
        ValueError: for other shapes, or a gamma that is negative.

    Example:
        >>> with_auxiliaries(torch.tensor([2.0, 0.5]), torch.tensor([3.0, 1.0]), gamma=0.1)
        tensor([2.3000, 0.6000])
    """
    for each in (losses, auxiliary_losses):
        if not isinstance(each, Tensor) and any(not isinstance(loss, Tensor) for loss in each):
            raise TypeError(
                "expected the losses of all tasks as tensors, got others: for a task without data put None into the "
                "list for the optimizer, and loss + gamma * auxiliary loss for each of the others"
            )
    main, auxiliary = (
        each if isinstance(each, Tensor) else torch.stack(list(each)) for each in (losses, auxiliary_losses)
    )
    if main.ndim != 1 or main.shape != auxiliary.shape:
        raise ValueError(
            f"expected a loss and an auxiliary loss for each of T tasks, got the shapes {tuple(main.shape)} and "
            f"{tuple(auxiliary.shape)}: give T scalars or a tensor [T] of either"
        )
    checked = check_per_task("gamma", gamma)
    if any(factor < 0.0 for factor in ([checked] if isinstance(checked, float) else checked)):
        raise ValueError(f"expected gamma >= 0, got {gamma}: a small tower with a negative weight would unlearn")
    if isinstance(checked, float):
        return main + checked * auxiliary
    return main + per_task("gamma", checked, len(main), "cpu").to(main) * auxiliary


@dataclass
class _Widths:
    """The widths on the way through a head: what a feature map of `before` channels has become."""

    shrink: int
    last: nn.Module
    before: int = 0
    now: int = 0

    def into(self, layer: nn.Module, width: int) -> int:
        """The inputs of a layer that had `width`: the same number of values for each channel as before."""
        if self.before == 0:  # the first layer: the shared representation
            self.before = self.now = width
        if width % self.before:
            raise ValueError(
                f"expected layers that follow one another, got {layer} behind {self.before} channels: write the "
                "smaller tower yourself"
            )
        return width // self.before * self.now

    def out_of(self, layer: nn.Module, width: int) -> int:
        """The outputs of a layer that had `width`."""
        self.before = width
        self.now = width if layer is self.last else max(1, width // self.shrink)
        return self.now


def _layers(head: nn.Module) -> list[nn.Module]:
    """The layers of nested nn.Sequential, in order."""
    if isinstance(head, nn.Sequential):
        return [layer for part in head for layer in _layers(part)]
    return [head]


def _shrunk(layer: nn.Module, widths: _Widths) -> nn.Module:
    """A new layer as narrow as it has to be here."""
    like: dict[str, Any] = {}
    for p in layer.parameters():
        like = {"device": p.device, "dtype": p.dtype}
    if isinstance(layer, nn.Linear):
        inputs = widths.into(layer, layer.in_features)
        return nn.Linear(inputs, widths.out_of(layer, layer.out_features), bias=layer.bias is not None, **like)
    if isinstance(layer, _CONVOLUTIONS) and layer.groups == 1:
        inputs = widths.into(layer, layer.in_channels)
        names = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
        options: dict[str, Any] = {name: getattr(layer, name) for name in names}
        outputs = widths.out_of(layer, layer.out_channels)
        return type(layer)(inputs, outputs, bias=layer.bias is not None, **options, **like)
    if isinstance(layer, _NORMS):
        options = {name: getattr(layer, name) for name in ("eps", "momentum", "affine", "track_running_stats")}
        return type(layer)(widths.into(layer, layer.num_features), **options, **like)
    if isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) == 1:
        features = widths.into(layer, layer.normalized_shape[0])
        return nn.LayerNorm(features, layer.eps, layer.elementwise_affine, layer.bias is not None, **like)
    if any(True for _ in layer.parameters()):
        raise ValueError(
            "expected a head of linear layers, convolutions without groups, BatchNorm, LayerNorm and modules without "
            f"parameters, got {type(layer).__name__}: write the smaller tower yourself"
        )
    return copy.deepcopy(layer)
