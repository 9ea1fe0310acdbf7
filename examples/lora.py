"""Adapters for several trade-offs on one frozen model: MT2O over LoRA's parameters; one adapter is saved and served."""

from __future__ import annotations

import copy
import tempfile

import peft
import torch
from problem import DEVICE, Model, accuracies, loader, pairs, task_losses

from mt2o_ext import MT2OFused, WeightedFused, repeat


def pretrained(steps: int) -> Model:
    """A model that has learned the first digit only."""
    model = Model().to(DEVICE)
    optimizer = WeightedFused(model.parameters(), num_tasks=2, preferences=[1.0, 0.0], lr=3e-3)
    stream = repeat(loader(pairs()[0]))
    for _ in range(steps):
        optimizer.step(lambda: task_losses(model, *next(stream)))
    return model


def main(steps: int = 150) -> list[float]:
    torch.manual_seed(0)
    train, test = pairs()
    base = pretrained(steps)
    frozen = copy.deepcopy(base)
    config = peft.LoraConfig(r=8, target_modules=["trunk.0", "trunk.2"], modules_to_save=["heads.0", "heads.1"])
    model = peft.get_peft_model(base, config)
    trainable = [
        p for p in model.parameters() if p.requires_grad
    ]  # a set of these for each task, none of the frozen model
    optimizer = MT2OFused(trainable, num_tasks=2, num_subproblems=5, lr=1e-2)
    stream = repeat(loader(train))
    for _ in range(steps):
        optimizer.step(lambda: task_losses(model, *next(stream)))
    front = optimizer.front(lambda: task_losses(model, *test.tensors))
    print(front)
    with tempfile.TemporaryDirectory() as folder:
        with optimizer.subproblem(front.choose([0.5, 0.5])):
            model.save_pretrained(folder)  # this trade-off's adapter
        served = peft.PeftModel.from_pretrained(frozen, folder)
    found = accuracies(served, test)
    print(f"{sum(p.numel() for p in trainable):,} trainable numbers; accuracies {found[0]:.2f} and {found[1]:.2f}")
    return found


if __name__ == "__main__":
    main()
