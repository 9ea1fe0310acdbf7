"""The state of weightings, by subproblem and task, also that of the weightings that one is made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..device import capturing, kept_in_place
from .present import Narrowed, selected
from .refusal import Outcome
from .tables import along

if TYPE_CHECKING:
    from .base import Weighting

__all__ = ["State", "Stateful"]

State = dict[str, Tensor]


class Stateful:
    """The state of a weighting: tensors by name, whose first dimension is K, and those of its parts.

    Attributes:
        shares: names of tables [K, T] of the state that are weights on the simplex: in a step without some tasks the
            others share what they have together.
    """

    shares: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._state: State = {}
        self._numbers: State = {}
        self._shape: tuple[int, int, int] | None = None
        self._device = torch.device("cpu")
        self._some_absent = False  # while a step without some of the tasks is made
        self._last: Outcome | None = None  # of the last `weights`

    def state_dict(self) -> State:
        """The state that later weights depend on, as plain tensors; {} for a weighting without any.

        Later steps do not change these tensors, except those named "memory", as large as the gradients, which are not
        copied.
        """
        state = dict(self._state)
        for name, part in self._parts().items():
            state.update({f"{name}.{key}": tensor for key, tensor in part.state_dict().items()})
        return state

    def load_state_dict(self, state: State) -> None:
        """Restores what `state_dict` gave; the weighting must be bound.

        Raises:
            ValueError: when it does not fit, before anything is changed.
        """
        self._check_bound()
        self._check_state(state)
        self._load(state)

    def forget_columns(self) -> bool:
        """Forgets what is kept for each element of the gradients, which have other elements now.

        Returns:
            True if there was anything.
        """
        forgotten = [part.forget_columns() for part in self._parts().values()]
        return any(forgotten)

    def check_columns(self, widths: Sequence[int]) -> None:
        """Checks that what is kept for each element is that of gradients [K, T, P], P of these widths.

        Raises:
            ValueError: where it is not.
        """
        for part in self._parts().values():
            part.check_columns(widths)

    # ------------------------------------------------------------------ for subclasses
    def _initial_state(self, ones: Tensor) -> State:
        """The state before the first step; ``ones`` is float64 [K, T] on the device."""
        return {}

    def _axes_of_tasks(self, name: str) -> tuple[int, ...]:
        """The dimensions of ``_state[name]`` that count tasks: here the second one of all tables but [K]."""
        return (1,) if self._state[name].ndim > 1 else ()

    @contextmanager
    def _without_absent(self, present: Tensor) -> Iterator[None]:
        """Lasts while this weighting and its parts know of no tasks but those that are present, int64 [P].

        What they know of the others is left exactly as it was.
        """
        assert self._shape is not None
        before, shape, numbers, last = self._state, self._shape, self._numbers, self._last
        axes = {name: self._axes_of_tasks(name) for name in before}
        narrowed = Narrowed(before, axes, self.shares, present)
        self._state, self._shape = dict(narrowed.state), (shape[0], len(present), shape[2])
        self._some_absent = True
        self._numbers = {name: selected(table, (0,), present) for name, table in numbers.items()}
        try:
            with ExitStack() as stack:
                for part in self._parts().values():
                    stack.enter_context(part._without_absent(present))
                yield
            after = narrowed.restored(self._state)
        except BaseException:
            after = before
            raise
        finally:
            self._state, self._shape, self._numbers, self._some_absent = after, shape, numbers, False
        self._settle(before)
        if self._last is not None and self._last is not last:
            self._last = self._last.among(present, shape[1])

    def _parts(self) -> dict[str, Weighting]:
        """The weightings that this one is made of, under the names of their state."""
        return {}

    def _keep(self, finite: Tensor, before: State) -> None:
        """Puts back the old state of the subproblems that skip this step."""
        for name, old in before.items():
            new = self._state[name]
            self._state[name] = new if new is old else torch.where(along(finite, new), new, old)

    def _settle(self, before: State) -> None:
        """In a CUDA graph the new state takes the place of the old one."""
        if capturing(self._device):
            self._state = kept_in_place(before, self._state)

    def _check_bound(self) -> None:
        if self._shape is None:
            raise RuntimeError(
                f"{type(self).__name__} is not bound: call bind(num_rows, num_tasks, num_segments, device) first"
            )

    def _load(self, state: State) -> None:
        own, of_parts = self._shared_out(state)
        before = self._state
        self._state = {key: tensor.detach().clone().to(self._device) for key, tensor in own.items()}
        self._settle(before)
        for name, part in self._parts().items():
            part._load(of_parts[name])

    def _check_state(self, state: State) -> None:
        own, of_parts = self._shared_out(state)
        expected, got = ({name: (tuple(t.shape), t.dtype) for name, t in side.items()} for side in (self._state, own))
        if expected != got:
            raise ValueError(
                f"{type(self).__name__} expected the state {expected}, got {got}: load it into the same weighting with "
                "the same number of subproblems, tasks and segments"
            )
        for name, part in self._parts().items():
            part._check_state(of_parts[name])

    def _shared_out(self, state: State) -> tuple[State, dict[str, State]]:
        """Split a state into this weighting's own and those of its parts."""
        own: State = {}
        of_parts: dict[str, State] = {name: {} for name in self._parts()}
        for key, tensor in state.items():
            name, _, rest = key.partition(".")
            if name in of_parts:
                of_parts[name][rest] = tensor
            else:
                own[key] = tensor
        return own, of_parts
