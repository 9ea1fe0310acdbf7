"""Backward passes: torch's own, or those of a trainer that wants to make them itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["Backward", "Pass", "check_backward", "scaler_in_use"]

Backward = Callable[..., Any]  # (loss, **keywords of Tensor.backward)

L = TypeVar("L", bound=Tensor | None)


@dataclass(frozen=True)
class Pass:
    """The way in which a scalar is sent backward.

    function: a trainer's backward (``fabric.backward``, ``accelerator.backward``, ``self.manual_backward``), or None:
        torch's own.  It is called with the scalar, and with those keywords of ``Tensor.backward`` that are needed
        (``retain_graph``, ``inputs``).  Where a GradScaler is in use it multiplies by its factor itself.
    retain_graph: keep the graph behind the last scalar.
    """

    function: Backward | None = None
    retain_graph: bool = False

    def of_call(self, function: Backward | None, retain_graph: bool) -> Pass:
        """The way of one call, which may bring a function of its own."""
        return Pass(self.function if function is None else check_backward(function), retain_graph)

    def keeping(self, keep: bool = True) -> Pass:
        """The same for a scalar whose graph is needed again."""
        return replace(self, retain_graph=True) if keep else self

    def run(self, loss: Tensor, inputs: Sequence[Tensor] | None = None, weight: Tensor | None = None) -> None:
        """Adds the gradient of a scalar to ``.grad``: of all parameters behind it, or of ``inputs`` only.

        weight: like the scalar, multiplies its gradient; where torch's own backward makes the pass, without a launch.
        """
        keywords: dict[str, Any] = {"retain_graph": True} if self.retain_graph else {}
        if inputs is not None:
            keywords["inputs"] = inputs
        with _explained():
            if self.function is not None:
                self.function(loss if weight is None else loss * weight, **keywords)
            elif weight is None:
                torch.autograd.backward(loss, **keywords)
            else:
                torch.autograd.backward(loss, weight, **keywords)

    def run_all(self, losses: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
        """Adds the gradient of the sum of losses times weights to ``.grad``, which nobody has to add up for that.

        Torch's own backward makes the pass.  losses: of one number each, or whole tables; weights: like these.
        """
        assert self.function is None
        with _explained():
            torch.autograd.backward(losses, weights, retain_graph=self.retain_graph)

    def scaled(self, losses: Sequence[L], scaler: Any) -> list[L]:
        """The losses (those that are not None) times the factor of a scaler, if the function does not multiply."""
        if scaler is None or self.function is not None:
            return list(losses)
        return [loss if loss is None else scaler.scale(loss) for loss in losses]

    def check_sequential(self, what: str | None) -> None:
        """Checks that there is a backward pass for the function to make.

        what: an option that has none, or None.

        Raises:
            ValueError: if there is a function, and no pass for it.
        """
        if self.function is not None and what is not None:
            raise ValueError(
                f"expected no backward= with {what}, whose gradients torch.autograd.grad takes, got one: leave one of "
                "them out"
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> Pass:
        return self  # a copied optimizer is used in the same trainer, of which there is no copy


@contextmanager
def _explained() -> Iterator[None]:
    """Adds to an error of autograd what its reason is, most probably."""
    try:
        yield
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        raise RuntimeError(
            f"{error}\nDid the model take a step, or show other parameters (at(), subproblem(), front()), between "
            "the forward pass and backward()? Then compute the losses anew, after that."
        ) from error


def check_backward(function: Any) -> Backward | None:
    """Checks an argument ``backward``.

    Raises:
        TypeError: for anything but a function or None.
    """
    if function is not None and not callable(function):
        raise TypeError(
            f"expected backward= as a function (loss, **keywords), such as fabric.backward, got "
            f"{type(function).__name__}: pass the function itself"
        )
    result: Backward | None = function
    return result


def scaler_in_use(scaler: Any, before: Any, *, begun: bool) -> Any:
    """The ``scaler`` of a call of backward; None if it is None, or is not enabled.

    Args:
        scaler: as the user has given it.
        before: that of the calls before, in the same step, as it was returned here.
        begun: whether there were such calls.

    Raises:
        TypeError: for anything but a GradScaler or None.
        ValueError: for another one than before: a step divides all of its gradients by one factor.
    """
    if scaler is not None and not all(callable(getattr(scaler, name, None)) for name in ("scale", "is_enabled")):
        raise TypeError(
            f"expected scaler= as a torch.amp.GradScaler, got {type(scaler).__name__}: pass the scaler itself, or None"
        )
    used = scaler if scaler is not None and scaler.is_enabled() else None
    if begun and used is not before:
        expected, got = ("a GradScaler" if each is not None else "none" for each in (before, used))
        another = "another one" if before is not None and used is not None else got
        raise ValueError(
            f"expected the same scaler= in all calls of backward of a step, got {another} after {expected}: pass it in "
            "each call, or in none, because the step divides all gradients by one factor (optimizer.zero_grad() begins "
            "anew)"
        )
    return used
