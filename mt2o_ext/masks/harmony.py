"""The search for masks: elements on which a task disagrees with the others leave its mask, others enter (HarmoDT)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import check_choice, check_count, check_function, check_positive, check_real
from ..gradients.losses import task_loss
from .task_masks import TaskMasks

__all__ = ["CosineBudget", "Harmony", "largest", "smallest"]


@dataclass(frozen=True)
class CosineBudget:
    """a_t = int(high + (low - high) (1 + cos(2 pi t / steps)) / 2): from `low` to `high` at half time, and back.

    The published schedule, with low = 0, high = 100 and steps = 1e6: a whole period of the cosine.

    Example:
        >>> budget = CosineBudget(high=100, steps=1000)
        >>> [budget(step) for step in (0, 250, 500, 1000)]
        [0, 50, 100, 0]
    """

    steps: int
    low: int = 0
    high: int = 100

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        check_count("low", self.low, 0)
        check_count("high", self.high, self.low)

    def __call__(self, step: int) -> int:
        """Return the number of elements that each task exchanges at this step."""
        check_count("step", step, 0)
        share = (1 + math.cos(2 * math.pi * min(step, self.steps) / self.steps)) / 2
        return int(self.high + share * (self.low - self.high) + 1e-9)  # what is whole up to rounding is whole


class Harmony:
    """Exchanges elements of masks by how they agree with the other tasks, and by how much they matter (HarmoDT).

    With g_k the gradient of task k at its masked parameters, shortened to `max_norm` and masked, and g their mean:

    * agreement A_k = g * g_k elementwise, importance I_k = g_k^2 ("fisher") or |theta| ("magnitude"),
    * the `amount` elements in the mask with the least I_k + gamma A_k leave it,
    * as many of those that were outside, with the largest A_k, enter it.

    From an account of the published code of HarmoDT (ICML 2024, arXiv 2405.18080), which masks gradients before all
    scores. Then A_k is 0 outside of a mask, and what enters is chosen by no rule: ``grow_grad="masked"`` is that, with
    the first elements of those that are equal. By default ("dense") agreement outside is that of gradients that are not
    masked, at the masked parameters, which is ours, after RigL (Evci et al., ICML 2020). Ours as well: the mean
    gradient is the same for all tasks (in the published code it overwrites the first task's), and equal scores go by
    the order of the elements.

    Args:
        gamma: of the agreement against the importance, >= 0.
        importance: "fisher" or "magnitude".
        grow_grad: "dense" or "masked".
        max_norm: of each task's gradient, over all parameters that have masks; None: not shortened.

    Example:
        >>> model = torch.nn.Linear(3, 4)
        >>> masks = TaskMasks(model.named_parameters(), num_tasks=2, density=0.5)
        >>> harmony, budget = Harmony(), CosineBudget(high=4, steps=100)
        >>> before = masks.bits.clone()
        >>> harmony.update(masks, lambda task: (model(torch.ones(5, 3)) - task).square().mean(), budget(50))
        >>> torch.equal(before, masks.bits), masks.counts()
        (False, tensor([8, 8]))
    """

    def __init__(
        self,
        gamma: float = 10.0,
        *,
        importance: str = "fisher",
        grow_grad: str = "dense",
        max_norm: float | None = 0.25,
    ) -> None:
        self.gamma = check_real("gamma", gamma)
        self.importance = check_choice("importance", importance, ("fisher", "magnitude"))
        self.grow_grad = check_choice("grow_grad", grow_grad, ("dense", "masked"))
        self.max_norm = None if max_norm is None else check_positive("max_norm", max_norm)

    def update(self, masks: TaskMasks, loss_of: Callable[[int], Tensor], amount: int) -> None:
        """Exchanges `amount` elements of each mask, or as many as there are inside or outside of it.

        Of masks with ``granularity="channel"`` whole channels change, by the sums of their elements' scores, and
        `amount` is of channels.  Changes no parameter and no ``.grad``; keeps K gradients in memory meanwhile.

        Args:
            masks: changed, all of them or, after an exception, none.
            loss_of: returns the loss of a task, on a new mini-batch of it; called once for each with the model as the
                task sees it.
            amount: of elements, a `CosineBudget` of the step, say.

        Raises:
            TypeError: for masks, a function or a loss of another kind.
            ValueError: for a loss that is no scalar or has no graph, and for gradients that are not finite.
        """
        if not isinstance(masks, TaskMasks):
            raise TypeError(f"expected masks as TaskMasks, got {type(masks).__name__}: pass those that are to change")
        check_function("loss_of", loss_of, "pass a function task -> loss")
        check_count("amount", amount, 0)
        if amount == 0:
            return
        gradients = torch.stack([self.gradient(masks, loss_of, task) for task in range(masks.num_tasks)])
        change = _exchanged_channels if masks.granularity == "channel" else _exchanged_elements
        new = [change(masks, mask, *scores, amount) for mask, scores in self.scores(masks, gradients)]
        for task, mask in enumerate(new):
            masks.set_flat(task, mask)

    def gradient(self, masks: TaskMasks, loss_of: Callable[[int], Tensor], task: int) -> Tensor:
        """Return the gradient of a task at its masked parameters, [P], not masked, of length `max_norm` at most."""
        parameters = masks.parameters_with_masks
        trained = [p for p in parameters if p.requires_grad]
        with masks.shown(task, gradients="dense"), torch.enable_grad():
            loss = task_loss(loss_of(task), task)
            if loss is None:
                raise ValueError(f"expected a loss with a graph of task {task}, got one without: compute it anew")
            found = dict(zip(trained, torch.autograd.grad(loss, trained, allow_unused=True), strict=True))
        parts = [found.get(p) for p in parameters]
        filled = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, parts, strict=True)]
        flat = torch.cat([wide(g) for g in filled])
        if not bool(flat.isfinite().all()):
            raise ValueError(f"expected finite gradients of task {task}, got NaN or infinities: look at its loss")
        if self.max_norm is None:
            return flat
        return flat * (self.max_norm / (flat.norm() + 1e-6)).clamp(max=1.0)

    def scores(self, masks: TaskMasks, gradients: Tensor) -> list[tuple[Tensor, tuple[Tensor, Tensor]]]:
        """Return for each task its mask, the harmony of what is inside, and the agreement of what is outside, each [P].

        Args:
            masks: of K tasks.
            gradients: [K, P], not masked.
        """
        flat_masks = [masks.flat(task).to(gradients.device) for task in range(masks.num_tasks)]
        sizes = zip(masks.sizes, masks.whole, strict=True)
        whole = torch.cat(
            [torch.full((size,), each, dtype=torch.bool, device=gradients.device) for size, each in sizes]
        )
        masked = torch.stack([g * (mask | whole) for g, mask in zip(gradients, flat_masks, strict=True)])
        mean, outside = masked.mean(0), gradients if self.grow_grad == "dense" else masked
        theta = torch.cat([wide(p) for p in masks.parameters_with_masks])
        outside_mean = outside.mean(0)
        found = []
        for task, mask in enumerate(flat_masks):
            importance = masked[task].square() if self.importance == "fisher" else theta.abs()
            harmony = importance + self.gamma * mean * masked[task]
            found.append((mask, (harmony, outside_mean * outside[task])))
        return found


def wide(values: Tensor) -> Tensor:
    """Values without a graph as [n], of at least 32 bits."""
    return values.detach().flatten().to(torch.promote_types(values.dtype, torch.float32))


def _exchanged_elements(masks: TaskMasks, mask: Tensor, harmony: Tensor, agreement: Tensor, amount: int) -> Tensor:
    return exchanged(mask, harmony, agreement, amount)


def _exchanged_channels(masks: TaskMasks, mask: Tensor, harmony: Tensor, agreement: Tensor, amount: int) -> Tensor:
    """The same of whole channels, by the sums of their elements' scores."""
    channels = masks.channels
    parts = [values[None].split(masks.sizes, 1) for values in (mask, harmony, agreement)]
    inside, outside = (channels.sums(part)[0] for part in parts[1:])
    new = exchanged(channels.firsts(parts[0])[0], inside, outside, amount)
    return torch.cat(channels.spread(new[None]), 1)[0]


def exchanged(mask: Tensor, harmony: Tensor, agreement: Tensor, amount: int) -> Tensor:
    """The mask [P] without the `amount` elements of least harmony, and with as many from outside that agree most."""
    amount = min(amount, int(mask.sum()), int((~mask).sum()))
    leaving = smallest(harmony, mask, amount)
    entering = largest(agreement, ~mask, amount)
    return (mask & ~leaving) | entering


def smallest(scores: Tensor, among: Tensor, amount: int) -> Tensor:
    """The `amount` least scores among some, bool [P], exactly that many; of equal ones the first."""
    chosen = torch.zeros_like(among)
    if amount == 0:
        return chosen
    places = among.nonzero()[:, 0]
    values = scores[places]
    limit = values.kthvalue(amount).values
    below = values < limit
    equal = values == limit
    first = equal & (equal.cumsum(0) <= amount - below.sum())
    chosen[places[below | first]] = True
    return chosen


def largest(scores: Tensor, among: Tensor, amount: int) -> Tensor:
    """The `amount` largest scores among some, as `smallest`."""
    return smallest(-scores, among, amount)
