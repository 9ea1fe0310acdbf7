"""Search for the layers of a model and the per-task norms that go with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import overload

from torch import nn

from .connection import LAYERS, Connection
from .task_norm import TaskNorm

__all__ = ["Connections", "find_connections"]


class Connections(Sequence[Connection]):
    """Connections of a model, and the layers that were left plain with the reason; ``print`` gives a table.

    A list of :class:`Connection` made by hand serves as well; ``[*find_connections(model), Connection(...)]`` adds to
    what was found.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), TaskBatchNorm2d(8, num_tasks=2))
        >>> print(find_connections(model))
        layer  kind    channels  goes with
        0      Conv2d  8         before 1 (TaskBatchNorm2d)
    """

    def __init__(self, paired: Sequence[Connection], norm_names: dict[TaskNorm, str], plain: dict[str, str]) -> None:
        self.paired = list(paired)
        self.plain = dict(plain)
        self._norm_names = norm_names

    @overload
    def __getitem__(self, index: int) -> Connection: ...
    @overload
    def __getitem__(self, index: slice) -> list[Connection]: ...
    def __getitem__(self, index: int | slice) -> Connection | list[Connection]:
        return self.paired[index]

    def __len__(self) -> int:
        return len(self.paired)

    def __str__(self) -> str:
        rows = [("layer", "kind", "channels", "goes with")]
        for connection in self.paired:
            norm = connection.norm
            assert norm is not None
            place = "after" if connection.before else "before"
            goes_with = f"{place} {self._norm_names[norm]} ({type(norm).__name__})"
            heads = f"{connection.channels} heads" if connection.num_heads else str(connection.channels)
            rows.append((connection.name, type(connection.layer).__name__, heads, goes_with))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = ["  ".join([*map(str.ljust, row[:3], widths), row[3]]) for row in rows]
        lines += [f"{name}: plain, {reason}" for name, reason in self.plain.items()]
        return "\n".join(lines)


def find_connections(model: nn.Module) -> Connections:
    """Pairs layers with per-task norms by the order in which a module registers its parts.

    A linear layer or convolution goes with a per-task norm that stands right behind it (only ``nn.Identity`` may stand
    between), as in ``nn.Sequential(conv, norm, ...)`` and in the blocks of ResNets (conv1, bn1, relu, conv2, bn2, ...).
    ``nn.TransformerEncoderLayer`` is known: with ``norm_first`` the norms are before attention (by head) and before
    ``linear1``, else behind the attention's output projection and behind ``linear2``.  For everything else make
    :class:`Connection` by hand.

    Layers whose weight is used in several places stay plain, and so does what differs in channels from the norm behind
    it.

    Raises:
        ValueError: where the model has no per-task norm at all.
    """
    names = {module: name for name, module in model.named_modules()}
    norm_names = {module: name for module, name in names.items() if isinstance(module, TaskNorm)}
    if not norm_names:
        raise ValueError("expected a model with per-task norms: model = TaskBatchNorm.convert(model, num_tasks)")
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    paired, plain = [], dict[str, str]()
    for layer, norm, before in _pairs(model):
        name = names[layer]
        weight = layer.in_proj_weight if isinstance(layer, nn.MultiheadAttention) else layer.weight
        if uses[id(weight)] > 1:
            plain[name] = "its weight is used in several places"
            continue
        try:
            paired.append(Connection(name, layer, norm, before=before))
        except ValueError as error:
            plain[name] = str(error).removeprefix(f"{name}: ")
    done = {connection.layer for connection in paired}
    inside = {part for module in model.modules() if isinstance(module, TaskNorm) for part in module.modules()}
    for module, name in names.items():
        if isinstance(module, (*LAYERS, nn.MultiheadAttention)) and module not in done | inside:
            plain.setdefault(name, "no per-task norm beside it")
    return Connections(paired, norm_names, plain)


def _pairs(model: nn.Module) -> Iterator[tuple[nn.Module, TaskNorm, bool]]:
    """Layer, norm, and whether the norm comes first."""
    for module in model.modules():
        if isinstance(module, TaskNorm):
            continue
        if isinstance(module, nn.TransformerEncoderLayer):
            first, second = module.norm1, module.norm2
            if isinstance(first, TaskNorm) and isinstance(second, TaskNorm):
                if module.norm_first:
                    yield module.self_attn, first, True
                    yield module.linear1, second, True
                else:
                    yield module.self_attn.out_proj, first, False
                    yield module.linear2, second, False
            continue
        children = [child for child in module.children() if not isinstance(child, nn.Identity)]
        for layer, norm in pairwise(children):
            if isinstance(layer, LAYERS) and isinstance(norm, TaskNorm):
                yield layer, norm, False
