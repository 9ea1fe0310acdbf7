"""Kinds of layers: how the gradients of single losses by a layer's parameters follow from its input and output."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from ...registry import Registry
from .terms import Term

__all__ = ["LayerKind", "kind_of", "register"]


class LayerKind(ABC):
    """A kind of layers with one input tensor and one output tensor, whose forward is that of the module's class.

    Derive a class, decorate it with ``@register("name")``, and layers of these modules take its formula in every
    :class:`LayerEngine` that is made afterwards.

    Attributes:
        modules: the classes of modules; classes that are derived from them are others.
        parameters: the names of the parameters that `terms` knows, all of the module's own.
        separable: `terms` takes inputs of fewer samples than there are gradients, because it makes one factor of the
            inputs, and one of the gradients (`Outer`, and sums of gradients).  Such layers also have a formula for
            losses of a whole batch.
        batch_anywhere: the samples need not be dimension 0 of input and output.

    Example:
        >>> from torch import nn
        >>> class Scale(nn.Module):
        ...     def __init__(self, width):
        ...         super().__init__()
        ...         self.scale = nn.Parameter(torch.ones(width))
        ...     def forward(self, x):
        ...         return x * self.scale
        >>> @register("scale of the example")
        ... class ScaleKind(LayerKind):
        ...     modules, parameters = (Scale,), ("scale",)
        ...     def terms(self, module, x, grad, wanted):
        ...         return {"scale": Dense((x * grad).flatten(1, -2).sum(1))}  # x [N, L, width]
        >>> kind_of(Scale(3))
        ScaleKind()
    """

    modules: ClassVar[tuple[type[nn.Module], ...]]
    parameters: ClassVar[tuple[str, ...]] = ("weight", "bias")
    separable: ClassVar[bool] = False
    batch_anywhere: ClassVar[bool] = False

    def fits(self, module: Any, x: Tensor) -> bool:
        """True if the formula is right for this module's options and this input; asked in the forward pass."""
        return True

    def mixes(self, module: Any) -> bool:
        """True if an output depends on other samples of the batch, in the mode that the module is in."""
        return False

    def reads(self, module: Any) -> tuple[Tensor, ...]:
        """Tensors beside the input that the formula reads, and that may not change until backward."""
        return ()

    @abstractmethod
    def terms(self, module: Any, x: Tensor, grad: Tensor, wanted: Collection[str]) -> Mapping[str, Term]:
        """The gradients of N losses by the wanted parameters, each loss that of one sample.

        Args:
            module: the layer.
            x: [N, ...], its input; float32 or float64, or integers.
            grad: [N, ...], the gradients by its output, in the same type.
            wanted: names of parameters.
        """

    def combined(self, module: Any, x: Tensor, grad: Tensor, wanted: Collection[str]) -> Mapping[str, Tensor]:
        """The sum over the N losses of these gradients; override it where that is less work than by the terms."""
        return {name: term.total() for name, term in self.terms(module, x, grad, wanted).items()}

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


register: Registry[LayerKind] = Registry("layer kind", LayerKind)
"""The decorator of kinds of layers, and the mapping from their names to their classes."""

_known: dict[type[nn.Module], LayerKind] = {}
_count = 0


def kind_of(module: nn.Module) -> LayerKind | None:
    """The kind that a module is of, or None: unknown classes, and modules whose forward was replaced."""
    global _count
    if len(register) != _count:
        _known.update({cls: kind() for kind in register.values() for cls in kind.modules})
        _count = len(register)
    return None if "forward" in vars(module) else _known.get(type(module))
