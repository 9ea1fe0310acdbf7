"""Accelerate: `prepare`, accumulation, clipping and saving; our own methods are those of ``optimizer.optimizer``."""

from __future__ import annotations

import tempfile

import torch
from accelerate import Accelerator
from problem import Model, accuracies, loader, pairs, task_losses

from mt2o_ext import WeightedFused


def main(epochs: int = 10) -> list[float]:
    torch.manual_seed(0)
    train, test = pairs()
    accelerator = Accelerator(gradient_accumulation_steps=2)
    group = True if accelerator.num_processes > 1 else None  # the optimizer averages over the ranks
    model = Model()
    optimizer = WeightedFused(model.parameters(), num_tasks=2, weighting="upgrad", lr=3e-3, process_group=group)
    model, optimizer, batches = accelerator.prepare(model, optimizer, loader(train, 32))
    for _ in range(epochs):
        for x, y in batches:
            with accelerator.accumulate(model), accelerator.no_sync(model):
                optimizer.optimizer.backward(task_losses(model, x, y))
                if accelerator.sync_gradients and group is None:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()  # at every second mini-batch
                optimizer.zero_grad()
    with tempfile.TemporaryDirectory() as folder:
        accelerator.save_state(folder)  # all that a run needs to go on with the same bits
        accelerator.save_model(model, folder)
    found = accuracies(accelerator.unwrap_model(model), test)
    accelerator.print(f"accuracies {found[0]:.2f} and {found[1]:.2f}")
    return found


if __name__ == "__main__":
    main()
