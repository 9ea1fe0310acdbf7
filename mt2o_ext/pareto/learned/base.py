"""The common part of networks that learn a whole front: draws of preferences, the loss, the front."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...checks import check_count, check_per_task, per_task
from ...dirichlet import dirichlet
from ...preferences import check_preferences, default_preferences
from ...scalarization import Scalarization, as_scalarization
from ..evaluation import Evaluated, Evaluation
from ..front import ParetoFront
from ..values import Numbers

__all__ = ["Fixed", "LearnedFront"]


class LearnedFront(nn.Module, ABC):
    """The base class: a subclass gives `forward` for inputs and a preference, and `at`, the model for one preference.

    It is an ordinary module: parameters for any optimizer, and checkpoints by its state_dict.

    Args:
        num_tasks: T.
        concentration: of the Dirichlet distribution that `sample` draws from, one number for all tasks or one for each.
            Below 1 most draws are near a corner of the simplex, at 1 they are uniform.
        scalarization: an instance or its name: the loss of T losses and a preference.

    Example:
        >>> network = PreferenceInput(torch.nn.Linear(3 + 2, 2), num_tasks=2)
        >>> preference = network.sample(torch.Generator().manual_seed(0))
        >>> preference
        tensor([0.7330, 0.2670])
        >>> losses = network(torch.ones(8, 3), preference=preference).square().mean(0)
        >>> network.loss(losses, preference).backward()
    """

    def __init__(
        self, num_tasks: int, concentration: float | Sequence[float], scalarization: Scalarization | str
    ) -> None:
        super().__init__()
        self.num_tasks = check_count("num_tasks", num_tasks)
        self.concentration = check_per_task("concentration", concentration, positive=True)
        per_task("concentration", self.concentration, num_tasks, "cpu")
        self.scalarization = as_scalarization(scalarization)

    def extra_repr(self) -> str:
        return f"num_tasks={self.num_tasks}, concentration={self.concentration}, scalarization={self.scalarization!r}"

    @abstractmethod
    def at(self, preference: Numbers) -> nn.Module:
        """Return the model for one preference [T], which takes inputs only."""

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw a preference [T] from Dirichlet(concentration), with the dtype and on the device of the parameters.

        Args:
            generator: one of the CPU, whose state belongs into your checkpoints; torch's default one where None.
        """
        numbers = dirichlet(per_task("concentration", self.concentration, self.num_tasks, "cpu"), generator)
        return self._like_parameters(numbers)

    def loss(self, losses: Tensor | Sequence[Tensor], preference: Tensor) -> Tensor:
        """Return the loss [] of T losses (a tensor [T] or T scalars) at the preference [T] they were computed for."""
        return self.scalarization(self._stacked(losses), self._checked(preference))

    def front(
        self,
        evaluate: Callable[[nn.Module], Evaluation],
        rays: int | Tensor | Sequence[Sequence[float]] = 25,
        *,
        reference: Numbers | None = None,
        task_names: Sequence[str] = (),
        models: bool = False,
    ) -> ParetoFront:
        """Evaluate the models for several preferences, and return the front.

        Args:
            evaluate: takes a model, returns its T losses, or a pair of them and a dictionary of metrics; called under
                no_grad. The model is in the mode (training or not) that this network is in.
            rays: the preferences [K, T], or their number: evenly spaced ones, as those of the optimizers.
            reference: of the hypervolume, [T].
            task_names: for plots and tables.
            models: keep the state dicts of the models, for `ParetoFront.model`; its template is `self.at(preference)`
                for any preference.
        """
        if isinstance(rays, int):
            rays = default_preferences(rays, self.num_tasks)
        preferences = check_preferences(rays, len(rays), self.num_tasks)
        found = Evaluated(len(preferences), self.num_tasks)
        with torch.no_grad():
            for preference in preferences:
                model = self.at(preference)
                found.add(evaluate(model), model if models else None)
        corner = None if reference is None else torch.as_tensor(reference, dtype=torch.float64)
        return ParetoFront(found.losses, preferences, corner, task_names, found.metrics, found.states)

    def _anchor(self) -> Tensor:
        """A parameter with the device and the dtype of preferences."""
        return next(self.parameters())

    def _like_parameters(self, preference: Numbers) -> Tensor:
        parameter = self._anchor()
        return torch.as_tensor(preference, dtype=torch.float64).to(device=parameter.device, dtype=parameter.dtype)

    def _checked(self, preference: Numbers) -> Tensor:
        """The preference as a tensor [T] like the parameters. Values are not read: they stay on the device."""
        tensor = self._like_parameters(preference)
        if tensor.shape != (self.num_tasks,):
            raise ValueError(
                f"expected a preference of shape ({self.num_tasks},), got {tuple(tensor.shape)}: give one weight for "
                "each task"
            )
        return tensor

    def _chosen(self, preference: Numbers) -> Tensor:
        """A preference [T] that a user has chosen, checked to be on the simplex; a copy like the parameters."""
        self._checked(preference)
        given = torch.as_tensor(preference, dtype=torch.float64)
        if isinstance(preference, Tensor) and preference.dtype.itemsize < 4:
            given = given / given.sum()  # as `sample` of a network of 16 bits gives it, whose sum is rounded
        return self._like_parameters(check_preferences(given.unsqueeze(0), 1, self.num_tasks)[0])

    def _stacked(self, losses: Tensor | Sequence[Tensor]) -> Tensor:
        stacked: Any = losses if isinstance(losses, Tensor) else torch.stack(list(losses))
        if stacked.shape != (self.num_tasks,):
            raise ValueError(
                f"expected {self.num_tasks} losses, got the shape {tuple(stacked.shape)}: give one scalar for each task"
            )
        return stacked


class Fixed(nn.Module):
    """A network of a whole front at one preference [T], which is a buffer: it shares the network's weights."""

    preference: Tensor

    def __init__(self, network: LearnedFront, preference: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("preference", preference)
        self.training = network.training

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Return the network's output for the preference."""
        return self.network(*inputs, preference=self.preference, **named)
