"""The owners of strengths: the output channels of a layer, and the per-task norm that goes with it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_list
from .task_norm import TaskBatchNorm, TaskNorm

__all__ = ["ChannelRange", "Connection", "check_connections"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)


@dataclass(frozen=True)
class ChannelRange:
    """A part of a tensor's memory, dense as [runs, channels, length], and the channel it begins with."""

    first_channel: int
    channels: int
    offset: int
    length: int
    runs: int


@dataclass(frozen=True, eq=False)
class Connection:
    """A layer and the per-task norm that its output goes to; or, with ``before``, that its input comes from.

    Strengths S_p^i of the layer's output channels p for task i, of which every task's are divided by their sum over the
    layer (Eq. 7):

    * BatchNorm after the layer (Eq. 6): gamma_ip^2 / (Var_ip + eps) |W_p|^2, Var the running variance of task i
    * LayerNorm or RMSNorm after it: gamma_ip^2 |W_p|^2; GroupNorm: also divided by the group's mean variance
    * a norm before the layer, affine: sum_q gamma_iq^2 W_pq^2
    * ``strength``: any function of the layer -> [T, channels]

    The last three are generalisations of this package; the paper has the first, for ``nn.Conv2d``.

    Args:
        name: for reports.
        layer: ``nn.Linear``, a convolution, also transposed or with groups, or ``nn.MultiheadAttention`` (its joint
            projection to queries, keys and values).
        norm: a per-task norm, or None where ``strength`` is given.
        before: the norm is before the layer.
        num_heads: the rows of a linear layer in so many groups, one channel each; of attention: its heads.
        strength: takes the place of the formulas above.

    Raises:
        TypeError, ValueError: for other layers, and where layer and norm differ in channels.

    Example:
        >>> norm = TaskBatchNorm2d(8, num_tasks=2)
        >>> connection = Connection("first", torch.nn.Conv2d(3, 8, 3), norm)
        >>> connection.channels, connection.strengths().shape
        (8, torch.Size([2, 8]))
    """

    name: str
    layer: nn.Module
    norm: TaskNorm | None
    before: bool = False
    num_heads: int | None = None
    strength: Callable[[nn.Module], Tensor] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.layer, (*LAYERS, nn.MultiheadAttention)):
            names = ", ".join(kind.__name__ for kind in (*LAYERS, nn.MultiheadAttention))
            raise TypeError(f"{self.name}: expected a layer among {names}, got {type(self.layer).__name__}")
        if isinstance(self.layer, nn.MultiheadAttention):
            if self.layer.in_proj_weight is None:
                raise ValueError(f"{self.name}: expected attention with one joint projection (kdim = vdim = embed_dim)")
            object.__setattr__(self, "num_heads", self.layer.num_heads)
            if not self.before and self.strength is None:
                raise ValueError(f"{self.name}: queries, keys and values have no norm after them: use before=True")
        if self.num_heads is not None and (
            self.num_heads < 1 or self.weight.shape[0] % self.num_heads or self._is_transposed
        ):
            raise ValueError(f"{self.name}: {list(self.weight.shape)} has no rows for {self.num_heads} heads")
        if self.norm is None:
            if self.strength is None:
                raise ValueError(f"{self.name}: expected a per-task norm, got None: give one, or strength=")
            return
        if not isinstance(self.norm, TaskNorm):
            raise TypeError(f"{self.name}: expected a per-task norm (TaskBatchNorm.convert), got {self.norm!r}")
        if self.before and (self._is_transposed or getattr(self.layer, "groups", 1) != 1):
            raise ValueError(f"{self.name}: a norm before the layer goes with linear layers and plain convolutions")
        channels = self.weight.shape[1] if self.before else self._rows
        if self.norm.channels != channels:
            raise ValueError(
                f"{self.name}: the layer has {channels} {'input' if self.before else 'output'} channels, its norm "
                f"{self.norm.channels}"
            )

    # ------------------------------------------------------------------ channels
    @property
    def weight(self) -> nn.Parameter:
        """The parameter whose rows are the channels."""
        weight: nn.Parameter = getattr(self.layer, "in_proj_weight" if self._is_attention else "weight")
        return weight

    @property
    def bias(self) -> nn.Parameter | None:
        """The bias that goes with the rows, or None."""
        bias: nn.Parameter | None = getattr(self.layer, "in_proj_bias" if self._is_attention else "bias", None)
        return bias

    @property
    def _is_attention(self) -> bool:
        return isinstance(self.layer, nn.MultiheadAttention)

    @property
    def _is_transposed(self) -> bool:
        return isinstance(self.layer, TRANSPOSED)

    @property
    def _groups(self) -> int:
        """The groups that split output channels in memory: of a transposed convolution, where they are dimension 1."""
        groups: Any = self.layer.groups if self._is_transposed else 1
        return int(groups)

    @property
    def _rows(self) -> int:
        return self.weight.shape[1] * self._groups if self._is_transposed else self.weight.shape[0]

    @property
    def channels(self) -> int:
        """The number of channels that have owners: output rows, or heads."""
        return self.num_heads or self._rows

    @property
    def in_the_paper(self) -> bool:
        """True for what the paper's method is written for: a two-dimensional convolution, then a BatchNorm."""
        batch_norm = isinstance(self.norm, TaskBatchNorm) and not self.before
        return batch_norm and self.strength is None and self.num_heads is None and isinstance(self.layer, nn.Conv2d)

    def weight_ranges(self, strides: Sequence[int]) -> list[ChannelRange]:
        """Return the places in memory, of these dense strides, where the weight has its channels."""
        shape, groups = self.weight.shape, self._groups
        numel = self.weight.numel() // groups
        channels = self.channels // groups
        if self._is_transposed and groups > 1 and strides[0] * shape[0] != self.weight.numel():
            raise ValueError(f"{self.name}: a transposed convolution with groups needs its inputs outermost in memory")
        dim = 1 if self._is_transposed else 0
        rows = shape[dim] // (channels * self._stacked)  # of a channel, one beside the other
        length = numel if channels * self._stacked == 1 else strides[dim] * rows  # (a size of one has any stride)
        return [
            ChannelRange(group * channels, channels, group * numel, length, numel // (channels * length))
            for group in range(groups)
        ]

    @property
    def _stacked(self) -> int:
        """The number of projections that lie one above the other: queries, keys, values."""
        return 3 if self._is_attention else 1

    def bias_range(self) -> ChannelRange:
        """The place in memory where the bias has its channels."""
        assert self.bias is not None
        length = self._rows // (self.channels * self._stacked)
        return ChannelRange(0, self.channels, 0, length, self._stacked)

    # ------------------------------------------------------------------ strengths
    @torch.no_grad()
    def strengths(self) -> Tensor:
        """float64 [T, channels], not yet divided by their sums."""
        if self.strength is not None:
            return self.strength(self.layer).detach().double()
        assert self.norm is not None
        if self.before:
            squares = self.weight.detach().double().square()
            squares = squares.flatten(2).sum(2) if squares.dim() > 2 else squares
            rows = self.norm.scales().square() @ squares.T
        else:
            rows = self.norm.gains() * self._energies().double()
        return rows if self.num_heads is None else rows.unflatten(1, (self._stacked, self.num_heads, -1)).sum((1, 3))

    def _energies(self) -> Tensor:
        """|W_p|^2 of each output row: Eq. 4's 1 / k^2 is the same for all and cancels in Eq. 7."""
        weight = self.weight.detach()
        if self._is_transposed:
            groups = self._groups
            weight = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        return torch.linalg.vector_norm(weight.flatten(1), dim=1, dtype=wide).square()


def check_connections(connections: Iterable[Connection], num_tasks: int) -> list[Connection]:
    """Return the connections as a list, each checked once.

    Raises:
        TypeError: for anything but connections.
        ValueError: for connections that do not fit the optimizer.
    """
    seen: dict[int, str] = {}
    checked = check_list("connections", connections, "pass find_connections(model)")
    for connection in checked:
        if not isinstance(connection, Connection):
            raise TypeError(
                f"expected connections as Connection, got {type(connection).__name__}: pass find_connections(model)"
            )
        if connection.norm is not None and connection.norm.num_tasks != num_tasks:
            raise ValueError(
                f"{connection.name}: expected a norm of {num_tasks} tasks (num_tasks), got one of "
                f"{connection.norm.num_tasks}: convert the model for as many tasks"
            )
        if id(connection.weight) in seen:
            raise ValueError(
                f"{connection.name}: expected a weight of its own, got that of {seen[id(connection.weight)]}: leave "
                "one of the two connections out"
            )
        seen[id(connection.weight)] = connection.name
        shape = tuple(connection.strengths().shape)
        if shape != (num_tasks, connection.channels):
            raise ValueError(
                f"{connection.name}: expected strengths of shape {[num_tasks, connection.channels]}, got "
                f"{list(shape)}: return a number for each task and channel"
            )
    if not checked:
        warnings.warn("no connections: phase 2 is the plain sum of all gradients", UserWarning, stacklevel=3)
    return checked
