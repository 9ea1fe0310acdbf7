"""Transfer matrices from the user's own function."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..checks import check_mix
from .base import Identity, TransferContext, TransferRule


class UserTransfer(TransferRule):
    """M = ``function(context)``, [K, K] or [S, K, K], or None for no transfer; checked by `check_mix`.

    needs_gram: whether ``function`` reads ``context.gram``; False saves a pass over the parameters.

    The check reads M on the host. What its rows lack to 1 (float32 rounding) goes to the diagonal: it would scale the
    parameters at each transfer.
    """

    def __init__(
        self, function: Callable[[TransferContext], Tensor | None], every: int = 1, *, needs_gram: bool = True
    ) -> None:
        super().__init__(every=every)
        if not callable(function):
            raise TypeError(f"expected a function of the context, got {type(function).__name__}: pass a callable")
        self.function = function
        self.needs_gram = bool(needs_gram)

    def matrix(self, context: TransferContext) -> Tensor | None:
        matrix = self.function(context)
        if matrix is None:
            return None
        num_segments = None if context.gram is None else len(context.gram)
        check_mix(matrix, len(context.preferences), num_segments)
        matrix = matrix.detach().to(context.preferences)
        return matrix + (1 - matrix.sum(-1)).diag_embed()


def as_transfer_rule(rule: TransferRule | Callable[[TransferContext], Tensor | None] | bool | None) -> TransferRule:
    """None and False give `Identity`, a rule itself, any other callable a `UserTransfer`."""
    if rule is None or rule is False:
        return Identity()
    if isinstance(rule, TransferRule):
        return rule
    if isinstance(rule, type) or not callable(rule):
        got = f"the class {rule.__name__}" if isinstance(rule, type) else repr(rule)
        raise TypeError(
            f"expected a transfer rule, a function of the context, or None, got {got}: "
            "pass an instance such as Spectral()"
        )
    return UserTransfer(rule)
