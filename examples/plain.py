"""One model, two tasks, a weighting of their gradients: CAGrad in front of AdamW, with clipping and a schedule."""

from __future__ import annotations

import torch
from problem import DEVICE, Model, accuracies, loader, pairs, task_losses

from mt2o_ext import WeightedFused
from mt2o_ext.weighting import CAGrad


def main(epochs: int = 10) -> list[float]:
    torch.manual_seed(0)
    train, test = pairs()
    model = Model().to(DEVICE)
    groups = [
        {"params": model.trunk.parameters()},
        {"params": model.heads[0].parameters(), "task": 0},
        {"params": model.heads[1].parameters(), "task": 1},
    ]
    optimizer = WeightedFused(groups, num_tasks=2, weighting=CAGrad(c=0.4), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for x, y in loader(train):
            optimizer.backward(task_losses(model, x, y))  # the combined gradient is in .grad now
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()  # uses it up
        optimizer.epoch_end()
        schedule.step()
    found = accuracies(model, test)
    print(f"accuracy of the first digit {found[0]:.2f}, of the second {found[1]:.2f}; last weights {optimizer.weights}")
    return found


if __name__ == "__main__":
    main()
