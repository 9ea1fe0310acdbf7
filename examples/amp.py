"""Mixed precision: autocast around the forward pass, and a GradScaler, whose factor the optimizer has to know of."""

from __future__ import annotations

import torch
from problem import DEVICE, Model, accuracies, loader, pairs, task_losses
from torch import Tensor

from mt2o_ext import WeightedFused


def main(epochs: int = 10) -> list[float]:
    torch.manual_seed(0)
    train, test = pairs()
    model = Model().to(DEVICE)
    optimizer = WeightedFused(model.parameters(), num_tasks=2, weighting="upgrad", lr=3e-3)
    scaler = torch.amp.GradScaler(DEVICE.type, init_scale=2.0**12)

    def losses(x: Tensor, y: Tensor) -> list[Tensor]:
        with torch.autocast(DEVICE.type, dtype=torch.float16):
            return task_losses(model, x, y)

    for _ in range(epochs):
        for x, y in loader(train):
            optimizer.backward(losses(x, y), scaler=scaler)
            scaler.unscale_(optimizer)  # only for the line that follows
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)  # skipped where a gradient is infinite
            scaler.update()
    found = accuracies(model, test)
    print(f"accuracies {found[0]:.2f} and {found[1]:.2f}; the scale is {scaler.get_scale():g}")
    return found


if __name__ == "__main__":
    main()
