"""The prior of variational multi-task learning: for each task a mixture of the other tasks' posteriors."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..checks import check_count, check_positive, check_real
from ..gumbel import by_logits, gumbel_noise, mixing_weights, new_key
from .mean_field import MeanField
from .normal import divergence, mixed_moments, mixing_slopes, pulled_mean, pulled_variance

__all__ = ["MixturePrior"]

FLOOR = 1e-6  # added to every variance, as published


class MixturePrior(nn.Module):
    """For each task a prior made of the other tasks' layers, with learned chances of which of them (VMTL).

    Of "Variational multi-task learning with Gumbel-softmax priors" (Shen, Zhen, Worring and Shao, NeurIPS 2021, arXiv
    2111.05323). With posteriors N(m_k, v_k) of T tasks and alpha_k = softmax((logits_k + Gumbel noise) / temperature)
    over all j != k, the prior of task k has the mean sum_j alpha_kj m_j and the variance sum_j alpha_kj^2 v_j, and
    `forward` returns the T divergences KL(posterior | prior), to be added to the losses of the tasks times some beta.
    A gradient of it reaches the task's own posterior and its logits, not the other tasks' posteriors.

    From an account of the published code (the paper's equations are not compared): all of that, logits that start at 0,
    the falling temperature, and 1e-6 that is added to every variance. Left out: the stairs of 1000 steps in which the
    temperature falls, and the first steps with a standard normal prior. Ours: evaluation without noise, and `pull_`.

    Args:
        num_tasks: T >= 2.
        temperature: at the start.
        cooling: the temperature is multiplied by exp(-cooling) at each draw in training.
        lowest: the temperature stops there; at most ``temperature``.
        generator: the noise starts from one number of it; None: of torch's default one. The state dict holds all that
            later draws depend on.

    Attributes:
        logits: parameter [T, T]; its diagonal has no effect.

    Example:
        >>> heads = torch.nn.ModuleList(MeanField(torch.nn.Linear(3, 2)) for _ in range(4))
        >>> prior = MixturePrior(num_tasks=4)
        >>> divergences = prior(heads)
        >>> divergences.shape
        torch.Size([4])
        >>> losses = torch.stack([head(torch.ones(5, 3)).square().mean() for head in heads])
        >>> (losses + 1e-3 * divergences).sum().backward()
        >>> prior.probabilities()[0]
        tensor([0.0000, 0.3333, 0.3333, 0.3333])
    """

    key: Tensor
    draws: Tensor

    def __init__(
        self,
        num_tasks: int,
        *,
        temperature: float = 1.0,
        cooling: float = 3e-5,
        lowest: float = 0.5,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.num_tasks = check_count("num_tasks", num_tasks, 2)
        self.start = check_positive("temperature", temperature)
        self.cooling = check_real("cooling", cooling)
        self.lowest = check_positive("lowest", check_real("lowest", lowest, maximum=self.start))
        self.logits = nn.Parameter(torch.zeros(num_tasks, num_tasks, dtype=torch.float32))
        self.register_buffer("key", torch.tensor(new_key(generator), dtype=torch.int64))
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))

    def extra_repr(self) -> str:
        return f"num_tasks={self.num_tasks}, temperature={self.start}, cooling={self.cooling}, lowest={self.lowest}"

    @property
    def temperature(self) -> Tensor:
        """The temperature of the next draw, float64 []."""
        return (self.start * torch.exp(-self.cooling * self.draws.double())).clamp(min=self.lowest)

    def probabilities(self) -> Tensor:
        """Return the chances of the others in each task's prior, [T, T], softmax of the logits: how tasks relate."""
        return mixing_weights(self.logits.detach(), 1.0)

    def draw(self) -> Tensor:
        """Return new weights alpha [T, T] with their graph; in evaluation those without noise, at temperature 1."""
        if not self.training:
            return mixing_weights(self.logits, 1.0)
        noise = gumbel_noise(self.key, self.draws, self.num_tasks).to(self.logits.dtype)
        weights = mixing_weights(self.logits, self.temperature.to(self.logits.dtype), noise)
        self.draws += 1  # in place: DistributedDataParallel keeps the tensors that it sends
        return weights

    def forward(self, heads: Iterable[MeanField]) -> Tensor:
        """Return the divergence of each task's posterior from its prior, [T], with one draw of the weights.

        Args:
            heads: a `MeanField` for each task, all with parameters of the same shapes.
        """
        return self.divergences(*_posteriors(heads))

    def divergences(self, means: Tensor, variances: Tensor) -> Tensor:
        """Return what `forward` does for any normal distributions of T tasks, such as representations.

        Args:
            means: [T, ...].
            variances: of the same shape, > 0.
        """
        means, variances = self._rows(means), self._rows(variances)
        weights = self.draw().to(means)
        with torch.autocast(means.device.type, enabled=False):
            prior_means, prior_variances = mixed_moments(weights, means.detach(), variances.detach())
            return divergence(means, variances + FLOOR, prior_means, prior_variances + FLOOR)

    @torch.no_grad()
    def pull_(self, heads: Iterable[MeanField], amount: float, *, logits_lr: float = 0.003) -> None:
        """Makes a proximal step of the divergences instead of adding them to the losses, after a step of an optimizer.

        Each mean becomes (m + c m_p / v_p) / (1 + c / v_p) with c = `amount`, which is stable for any c; each variance
        the one that minimises (v - v_old)^2 / 2 + c KL. Priors are made of the values before the call. The logits make
        a gradient step on the divergences, each divided by the number of parameters, so leave them out of optimizers.

        Args:
            heads: as of `forward`.
            amount: c >= 0, say the learning rate times beta; in units of variances.
            logits_lr: length of the logits' step; 0: they stay.  Where it is large the chances follow the first draws,
                whoever these are of: on two pairs of equal tasks 0.1 missed a partner in 3 of 8 runs, 0.003 in none.
        """
        check_real("amount", amount)
        check_real("logits_lr", logits_lr)
        heads = list(heads)
        means, variances = (self._rows(part) for part in _posteriors(heads))
        temperature = self.temperature
        weights = self.draw().to(means)
        prior_means, prior_variances = mixed_moments(weights, means, variances)
        slopes = mixing_slopes(weights, means, variances, FLOOR) / means.shape[1]
        self.logits.sub_(logits_lr * by_logits(weights, slopes, temperature.to(means)).to(self.logits))
        new_means = pulled_mean(means, prior_means, prior_variances + FLOOR, amount)
        new_variances = pulled_variance(variances, prior_variances + FLOOR, amount)
        for head, mean, variance in zip(heads, new_means, new_variances, strict=True):
            head.set_posterior(mean, variance)

    def _rows(self, moments: Tensor) -> Tensor:
        """[T, P], of at least 32 bits."""
        if moments.dim() < 2 or len(moments) != self.num_tasks:
            raise ValueError(
                f"expected the moments of {self.num_tasks} tasks, [{self.num_tasks}, ...], got {list(moments.shape)}: "
                "give a row for each task"
            )
        return moments.flatten(1).to(torch.promote_types(moments.dtype, torch.float32))


def _posteriors(heads: Iterable[MeanField]) -> tuple[Tensor, Tensor]:
    """Means and variances [T, P]."""
    heads = list(heads)
    if wrong := [type(head).__name__ for head in heads if not isinstance(head, MeanField)]:
        raise TypeError(f"expected a MeanField for each task, got {', '.join(wrong)}: wrap the layers of each task")
    shapes = [[list(mean.shape) for mean in head.means()] for head in heads]
    if other := [task for task, shape in enumerate(shapes) if shape != shapes[0]]:
        raise ValueError(
            f"expected heads with parameters of the same shapes, got {shapes[0]} of task 0 and {shapes[other[0]]} of "
            f"task {other[0]}: give each task layers of the same sizes"
        )
    if not heads:
        raise ValueError("expected a MeanField for each task, got none: pass the heads of all tasks")
    means, variances = zip(*(head.posterior() for head in heads), strict=True)
    return torch.stack(means), torch.stack(variances)
