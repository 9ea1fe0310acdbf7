"""The evaluation of all models of a front, one after the other or all at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..bank import SubproblemBank
from ..gradients.losses import as_losses
from ..ranks import SubproblemRanks

__all__ = ["Evaluated", "check_trained", "states_of_bank"]

Evaluation = Tensor | Sequence[Tensor] | tuple[Tensor | Sequence[Tensor], Mapping[str, Any]]


class Evaluated:
    """Results of a user's function for subproblems.

    Args:
        num_subproblems: K.
        num_tasks: T.

    Attributes:
        states: state dicts of the models.
    """

    def __init__(self, num_subproblems: int, num_tasks: int) -> None:
        self._shape = num_subproblems, num_tasks
        self._losses: list[Tensor] = []
        self._metrics: dict[str, list[float]] = {}
        self.states: list[Mapping[str, Tensor]] = []

    def add(self, found: Evaluation, model: nn.Module | None) -> None:
        """Takes the evaluation of one subproblem: T losses, or a pair of them and a mapping of metrics to numbers."""
        losses, metrics = _split(found)
        self._losses.append(as_losses(losses, self._shape[1:]).unsqueeze(0))
        if len(self._losses) > 1:
            self._check_names(metrics, self._metrics)
        for name, value in metrics.items():
            self._metrics.setdefault(name, []).extend(_numbers(name, value, 1))
        if model is not None:
            self.states.append(_state_of(model))

    def add_all(self, found: Evaluation) -> None:
        """Takes the evaluation of all at once: losses [K, T], or a pair of them and of metrics [K]."""
        losses, metrics = _split(found)
        self._losses.append(as_losses(losses, self._shape))
        for name, values in metrics.items():
            self._metrics[name] = _numbers(name, values, self._shape[0])

    def gather(self, ranks: SubproblemRanks) -> None:
        """Takes the evaluations of all ranks, each of which has some of the subproblems; the states to the first rank.

        Raises:
            ValueError: on all ranks, for metrics of other names on some of them.
        """
        told = ranks.told_by_all((self._losses, self._metrics if self._losses else None))
        self._losses = [table for losses, _ in told for table in losses]
        named = [metrics for _, metrics in told if metrics is not None]
        for metrics in named:
            self._check_names(metrics, named[0])
        self._metrics = {name: [one for metrics in named for one in metrics[name]] for name in named[0]}
        states = ranks.told_to_first([_on_host(state) for state in self.states])
        self.states = [] if states is None else [state for some in states for state in some]

    @staticmethod
    def _check_names(metrics: Mapping[str, Any], before: Mapping[str, Any]) -> None:
        if metrics.keys() != before.keys():
            raise ValueError(
                f"expected the metrics {list(before)} of each subproblem from evaluate(), got {list(metrics)}"
            )

    @property
    def losses(self) -> Tensor:
        """float64 [K, T] on the host."""
        return torch.cat(self._losses)

    @property
    def metrics(self) -> dict[str, Tensor]:
        """By name float64 [K], the numbers of all subproblems."""
        return {name: torch.tensor(numbers, dtype=torch.float64) for name, numbers in self._metrics.items()}


def _split(found: Evaluation) -> tuple[Tensor | Sequence[Tensor], Mapping[str, Any]]:
    if isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], Mapping):
        return found[0], found[1]
    if found is None:
        raise TypeError("expected losses from evaluate(), got None: does it return them?")
    return found, {}


def _numbers(name: str, value: Any, count: int) -> list[float]:
    """The numbers of a metric.

    Raises:
        TypeError: for anything but numbers.
        ValueError: for another number of them.
    """
    try:
        numbers: list[float] = torch.as_tensor(value, dtype=torch.float64).reshape(-1).tolist()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"expected the metric {name!r} of evaluate() as {count} number(s), got {value!r:.80}: leave it out, or "
            "make it a number"
        ) from error
    if len(numbers) != count:
        raise ValueError(
            f"expected the metric {name!r} of evaluate() as {count} number(s), got {len(numbers)}: take its mean, or "
            "give each part a name"
        )
    return numbers


def _state_of(model: nn.Module) -> Mapping[str, Tensor]:
    """The state dict of the model as it is; what the next subproblem will write to in place is copied."""
    state = model.state_dict()
    written = {buffer.data_ptr() for buffer in model.buffers()}
    for name, tensor in state.items():
        if isinstance(tensor, Tensor) and (tensor.data_ptr() in written or tensor.is_shared()):
            state[name] = tensor.clone()
    return state


def _on_host(state: Mapping[str, Any]) -> Mapping[str, Any]:
    return {name: value.cpu() if isinstance(value, Tensor) else value for name, value in state.items()}


def check_trained(model: nn.Module, parameters: Iterable[Tensor]) -> None:
    """Checks that a model is the one that an optimizer trains.

    Args:
        model: of the user's.
        parameters: of the optimizer.

    Raises:
        ValueError: for a model without any of them.
    """
    if set(map(id, parameters)).isdisjoint(map(id, model.parameters())):
        raise ValueError(
            f"expected model= with the parameters of this optimizer, got a {type(model).__name__} with none of "
            "them, which is the same at each subproblem: pass the model that is trained, not a copy"
        )


def states_of_bank(bank: nn.Module) -> list[Mapping[str, Tensor]]:
    """The state dicts of all models of a bank."""
    if not isinstance(bank, SubproblemBank):
        raise TypeError(f"expected model= as the SubproblemBank with stacked=True, got a {type(bank).__name__}")
    states: list[Mapping[str, Tensor]] = []
    for k in range(bank.num_subproblems):
        with bank.subproblem(k) as model:
            states.append(model.state_dict())
    return states
