"""Every scheduler of torch goes along, without a warning."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from support.optim.problems import (
    Twin,
    parameters,
    set_gradients,
)

lr_scheduler = torch.optim.lr_scheduler


SCHEDULES: dict[str, Any] = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda t: 0.9**t),
    "multiplicative": lambda o: lr_scheduler.MultiplicativeLR(o, lambda t: 0.9),
    "step": lambda o: lr_scheduler.StepLR(o, 2),
    "multi step": lambda o: lr_scheduler.MultiStepLR(o, [1, 3]),
    "constant": lambda o: lr_scheduler.ConstantLR(o, 0.5, 2),
    "linear": lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=3),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.8),
    "polynomial": lambda o: lr_scheduler.PolynomialLR(o, 5),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "warm restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 1e-3, 1e-1, step_size_up=2),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=8),
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ExponentialLR(o, 0.9), lr_scheduler.ConstantLR(o)]
    ),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)], milestones=[2]
    ),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "swa": lambda o: torch.optim.swa_utils.SWALR(o, 0.05, anneal_epochs=3),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("base", ["adamw", "momentum"])
def test_schedulers_without_a_warning(name: str, base: str, twins: dict[str, Twin]) -> None:
    ours, theirs = parameters(20), parameters(20)
    optimizers = [twins[base].ours(ours), twins[base].torch(theirs)]
    with warnings.catch_warnings():
        if name == "sequential":  # torch calls a deprecated form of its own step()
            warnings.filterwarnings("ignore", category=UserWarning, message="The epoch parameter")
        schedulers = [SCHEDULES[name](optimizer) for optimizer in optimizers]
        for step in range(6):
            for p, optimizer, scheduler in zip((ours, theirs), optimizers, schedulers, strict=True):
                set_gradients(p, step)
                optimizer.step()
                scheduler.step(*([1.0] if name == "plateau" else []))
    first, second = (optimizer.param_groups[0] for optimizer in optimizers)
    assert first["lr"] == second["lr"] and first.get("initial_lr") == second.get("initial_lr")
    assert first.get("betas") == second.get("betas") and first.get("momentum") == second.get("momentum")
    torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=2e-6)
