"""Transfer matrices from the user's own function."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..checks import check_mix
from .base import TransferContext, TransferRule
from .registry import register


class UserTransfer(TransferRule):
    """M = ``function(context)``, [K, K] or [S, K, K], or None for no transfer; checked by `check_mix`.

    The check reads M on the host. What its rows lack to 1 (float32 rounding) goes to the diagonal: it would scale the
    parameters at each transfer.

    Args:
        needs_gram: whether ``function`` reads ``context.gram``; False saves a pass over the parameters.

    Example:
        >>> preferences = mt2o_ext.preferences.even(3)
        >>> rule = UserTransfer(lambda context: torch.full((3, 3), 1 / 3), needs_gram=False)
        >>> rule.bind(preferences)
        >>> context = TransferContext(preferences, None, losses=None, step=0, lr=torch.tensor(0.1), initial_lr=0.1)
        >>> rule.matrix(context)
        tensor([[0.3333, 0.3333, 0.3333],
                [0.3333, 0.3333, 0.3333],
                [0.3333, 0.3333, 0.3333]], dtype=torch.float64)
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


def as_transfer_rule(
    rule: TransferRule | str | Callable[[TransferContext], Tensor | None] | bool | None,
) -> TransferRule:
    """Return a rule itself, a new one with this name, `UserTransfer` of a function, or `Identity` for None and False.

    Args:
        rule: an instance, a name such as "spectral", a function of the context, None or False.

    Raises:
        TypeError: for anything else, such as a class.
        ValueError: for an unknown name, with those that are near, and for a rule that has no default settings.
    """
    if rule is None or rule is False:
        return register.make("identity")
    if isinstance(rule, (TransferRule, str, type)) or not callable(rule):
        return register.make(rule)
    return UserTransfer(rule)
