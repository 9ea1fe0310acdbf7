"""The parts of weightings that learn: Adam on K x T numbers, and mean losses of epochs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import check_positive, check_real
from .state import State


@dataclass(frozen=True)
class TableAdam:
    """Adam (Kingma and Ba, ICLR 2015, arXiv 1412.6980) on a table [K, T] of a state, with L2 ``weight_decay``.

    The gradients of all methods here have no unit, so ``eps`` depends on no scale of the losses.
    """

    lr: float
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        check_real("lr", self.lr)
        check_real("weight_decay", self.weight_decay)
        check_positive("eps", self.eps)
        for beta in self.betas:
            if not 0 <= check_real("betas", beta) < 1:
                raise ValueError(f"expected betas in [0, 1), got {self.betas}")

    def start(self, ones: Tensor) -> State:
        """Moments and numbers of steps, all [K, T], before the first step."""
        zeros = torch.zeros_like(ones)
        return {"exp_avg": zeros, "exp_avg_sq": zeros.clone(), "adam_steps": zeros.clone()}

    def step(self, state: State, name: str, gradient: Tensor) -> None:
        """One step of ``state[name]``; all tensors that change are new ones."""
        beta1, beta2 = self.betas
        gradient = gradient + self.weight_decay * state[name]
        steps = state["adam_steps"] + 1
        first = beta1 * state["exp_avg"] + (1 - beta1) * gradient
        second = beta2 * state["exp_avg_sq"] + (1 - beta2) * gradient * gradient
        mean = first / (1 - beta1**steps)
        deviation = (second / (1 - beta2**steps)).sqrt()
        state[name] = state[name] - self.lr * mean / (deviation + self.eps)
        state.update({"exp_avg": first, "exp_avg_sq": second, "adam_steps": steps})

    def in_range(self, state: State, weights: Tensor) -> Tensor:
        """The weights [K, T]; infinite, which refuses the step, where the squares of the gradients have become so."""
        squares = state["exp_avg_sq"] / (1 - self.betas[1] ** state["adam_steps"])
        return torch.where(squares.isfinite(), weights, torch.inf)


class EpochMeans:
    """Mean losses of the last two finished epochs, kept in the state of a weighting.

    ``epoch_last`` and ``epoch_earlier`` [K, T] are the means, ``epochs_finished`` [K, T] how many there are; an epoch
    without a usable step of a task does not count for it.
    """

    def start(self, ones: Tensor) -> State:
        """Tables [K, T] before the first step."""
        names = ("epoch_total", "epoch_last", "epoch_earlier", "epoch_now", "epoch_steps", "epochs_finished")
        return {name: torch.zeros_like(ones) for name in names}

    def see(self, state: State, epoch: int, losses: Tensor) -> None:
        """Takes in the losses [K, T] of a step; closes the epoch before where ``epoch`` is a later one."""
        steps = state["epoch_steps"]
        ended = (state["epoch_now"] < epoch) & (steps > 0)
        mean = state["epoch_total"] / steps.clamp(min=1)
        state["epoch_earlier"] = torch.where(ended, state["epoch_last"], state["epoch_earlier"])
        state["epoch_last"] = torch.where(ended, mean, state["epoch_last"])
        state["epochs_finished"] = state["epochs_finished"] + ended
        state["epoch_total"] = torch.where(ended, 0.0, state["epoch_total"]) + losses
        state["epoch_steps"] = torch.where(ended, 0.0, steps) + 1
        state["epoch_now"] = torch.full_like(state["epoch_now"], epoch)
