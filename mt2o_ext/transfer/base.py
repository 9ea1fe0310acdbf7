"""The contract of transfer rules: the context that they are given, and the matrix that they answer with."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Size, Tensor

from ..checks import check_count, check_simplex


@dataclass(frozen=True)
class TransferContext:
    """The things that a rule may look at; K subproblems, T tasks, S segments (one per parameter tensor).

    Attributes:
        preferences: [K, T] float64, rows on the simplex.
        gram: [S, K, K] float64, centred: <theta_k - mean, theta_j - mean> per segment; of the change of Theta since the
            last transfer for a rule with ``relative``; None unless the rule ``needs_gram``.
        slopes: [S, K, K] float64, <g_k, theta_j - theta_0> per segment, g_k the combined gradient of subproblem k in
            this step; 0 for tensors that are never blended; None unless the rule ``needs_slopes``.
        losses: [K, T] float64, the last losses, or None.
        step: optimizer steps taken before this one.
        lr: 0-d float64, the current learning rate of the first group.
        initial_lr: the learning rate that group started with.

    Example:
        >>> preferences, lr = mt2o_ext.preferences.even(2), torch.tensor(0.1)
        >>> context = TransferContext(preferences, None, None, step=0, lr=lr, initial_lr=0.1)
        >>> context.preferences
        tensor([[1., 0.],
                [0., 1.]], dtype=torch.float64)
    """

    preferences: Tensor
    gram: Tensor | None
    losses: Tensor | None
    step: int
    lr: Tensor
    initial_lr: float
    slopes: Tensor | None = None


class TransferRule(ABC):
    """Gives the mixing matrix M of ``Theta <- M Theta - update``; the rows of M sum to 1.

    `bind` comes first and may read values on the host; `matrix` of the built-in rules never waits for the device.

    Attributes:
        every: the rule is due at each ``every``-th step.
        needs_gram: `matrix` reads ``context.gram``.
        needs_slopes: `matrix` reads ``context.slopes``.
        relative: M filters only the change of Theta since the last transfer.
        order: "adapt_then_combine" where the rule requires M (Theta - update); None leaves it to the optimizer.
        fixed: M does not adapt to the data. With one mini-batch shared by all subproblems such rules did not help
            reliably.
        nonnegative: no M has a negative entry.
        counts_steps: M depends on ``context.step``.

    Example:
        >>> class Ring(TransferRule):
        ...     def matrix(self, context):
        ...         identity = torch.eye(len(context.preferences), dtype=torch.float64)
        ...         return 0.9 * identity + 0.1 * identity.roll(1, 1)
        ...
        >>> rule = Ring()
        >>> rule.bind(mt2o_ext.preferences.even(3))
    """

    every: int = 1
    needs_gram: bool = False
    needs_slopes: bool = False
    relative: bool = False
    order: str | None = None
    fixed: bool = False
    nonnegative: bool = False
    counts_steps: bool = False

    _bound: bool = False

    def __init__(self, *, every: int = 1) -> None:
        self.every = check_count("every", every)

    def bind(self, preferences: Tensor) -> None:
        """Prepares the rule for ``preferences`` [K, T] float64 and forgets any state; M will live on their device.

        Warns (UserWarning) where K is too small for the rule, which then transfers nothing.

        Raises:
            TypeError, ValueError: for preferences that are not rows of the simplex, and for settings that do not fit
                them.
        """
        check_simplex(preferences)
        self._bound = True

    @abstractmethod
    def matrix(self, context: TransferContext) -> Tensor | None:
        """M, [K, K] or one per segment [S, K, K], float64, on the preferences' device; None: nothing to do."""

    def sources(self) -> list[list[int]] | None:
        """Return, for each row, the rows that any M of this rule can take from; None: any.

        A rule that answers goes by the preferences, the step and the learning rates alone.  Where several ranks share
        the rows, those that nobody takes from need not travel.
        """
        return None

    def due(self, step: int) -> bool:
        """Return whether the rule is applied in the step that follows ``step`` finished ones."""
        return (step + 1) % self.every == 0

    def state_dict(self) -> dict[str, Tensor]:
        """The state that later matrices depend on, as plain tensors; {} for a rule without any."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores what `state_dict` gave; the rule must be bound.

        Raises:
            ValueError: when it does not fit.
        """
        self._check_state(state, {})

    def _check_bound(self) -> None:
        if not self._bound:
            raise RuntimeError(f"{type(self).__name__} is not bound: call bind(preferences) first")

    def _gram(self, context: TransferContext) -> Tensor:
        if context.gram is None:
            raise ValueError(
                f"{type(self).__name__} expected context.gram, the centred Gram of the parameters [S, K, K], got None: "
                "compute it for rules with needs_gram"
            )
        return context.gram

    def _without_transfer(self, reason: str) -> None:
        """Says, once per `bind`, that the rule falls back to `Identity`."""
        warnings.warn(f"{type(self).__name__} transfers nothing: {reason}", UserWarning, stacklevel=3)

    def _check_state(self, state: dict[str, Tensor], shapes: dict[str, Size]) -> None:
        found = {name: tensor.shape for name, tensor in state.items()}
        if found != shapes:
            expected, got = ({name: tuple(shape) for name, shape in side.items()} for side in (shapes, found))
            raise ValueError(
                f"{type(self).__name__} expected the state {expected}, got {got}: "
                "load it into the same rule with the same number of subproblems and segments"
            )
