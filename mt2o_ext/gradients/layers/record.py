"""Records of the calls of layers, which lie in the graph itself and are freed with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge

from .kind import LayerKind, kind_of

__all__ = ["Call", "call_at", "forget_call", "record_call", "was_forgotten"]

KEY = "mt2o_ext.gradients.layers"


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a layer in a forward pass.

    Attributes:
        kind, module: the layer.
        x: the input, without its graph.
        parameters: the layer's own, by name.
        behind: the node of the graph that the input came from, or None: where the call ends.
        shape, dtype, output_nr: of the output.
        fits: the formula of the kind is right for this call.
        mixes: an output depends on other samples.
        versions: those of the tensors that the formula reads.
    """

    kind: LayerKind
    module: nn.Module
    x: Tensor
    parameters: Mapping[str, Tensor]
    behind: Node | None
    shape: torch.Size
    dtype: torch.dtype
    output_nr: int
    fits: bool
    mixes: bool
    versions: tuple[int, ...]

    def unchanged(self) -> bool:
        """True if the tensors that the formula reads were not written to since."""
        return self.versions == _versions(self.kind, self.module, self.x)


def record_call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    """Keep a record of this call at the node of its output: a forward hook without a state of its own.

    Nothing is recorded where other hooks see the output first and may change it, in compiled code, and of calls with
    anything but one plain tensor: the parameters then have no formula, and their gradients are computed.
    """
    if torch.compiler.is_compiling() or not isinstance(output, Tensor) or output.grad_fn is None:
        return
    kind = kind_of(module)
    hooks = module._forward_hooks
    first = next(iter(hooks.values())) is record_call and not torch.nn.modules.module._global_forward_hooks
    given = [*args, *kwargs.values()]
    if kind is None or not first or len(given) != 1 or type(given[0]) not in (Tensor, nn.Parameter):
        return
    x, own = given[0], module._parameters
    if x.is_inference() or x.layout != torch.strided or not set(kind.parameters) >= set(own):
        return
    parameters = {name: p for name, p in own.items() if p is not None and p.requires_grad}
    mixes = kind.mixes(module)
    if not (parameters or mixes) or any(not p.is_leaf or type(p) is not nn.Parameter for p in parameters.values()):
        return
    behind = get_gradient_edge(x).node if x.requires_grad else None
    if any(behind is get_gradient_edge(p).node for p in parameters.values() if p is x):
        return
    x = x.detach()  # the same memory and the same counter of versions
    call = Call(
        kind, module, x, parameters, behind, output.shape, output.dtype, output.output_nr,
        kind.fits(module, x), mixes, _versions(kind, module, x),
    )  # fmt: skip
    _notes(output.grad_fn).setdefault(KEY, call)


def _notes(node: Node) -> dict[str, Any]:
    """A dictionary that lives as long as the node (torch declares the attribute as a method)."""
    return cast(dict[str, Any], node.metadata)


def _versions(kind: LayerKind, module: nn.Module, x: Tensor) -> tuple[int, ...]:
    return tuple(tensor._version for tensor in (x, *kind.reads(module)))


def call_at(node: Node) -> Call | None:
    """The call whose output this node made, or None."""
    found: Call | None = _notes(node).get(KEY)
    return found


def forget_call(node: Node) -> None:
    """Drop the record, and with it the memory of the input."""
    _notes(node)[KEY] = None


def was_forgotten(node: Node) -> bool:
    """True if there was a record that is dropped."""
    return _notes(node).get(KEY, node) is None
