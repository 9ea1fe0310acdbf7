"""Lightning: manual optimization, the rest is the Trainer's (checkpoints, loggers, precision, max_steps).

python examples/in_lightning.py            one process
python examples/in_lightning.py 2          two, through strategy="ddp"
"""

from __future__ import annotations

import sys
from typing import Any

import lightning
import torch
from problem import Model, accuracies, loader, pairs, task_losses

from mt2o_ext import WeightedFused


class TwoDigits(lightning.LightningModule):
    def __init__(self, ranks: int) -> None:
        super().__init__()
        self.automatic_optimization = False  # there are two losses, and their backward is the optimizer's
        self.model, self.ranks = Model(), ranks

    def configure_optimizers(self) -> Any:
        # The optimizer averages over the ranks itself: DDP's hooks expect one backward, not one for each task.
        group = True if self.ranks > 1 else None
        return WeightedFused(
            self.model.parameters(), num_tasks=2, weighting="upgrad", lr=3e-3, max_norm=1.0, process_group=group
        )

    def training_step(self, batch: Any, index: int) -> None:
        optimizer = self.optimizers()
        losses = task_losses(self.model, *batch)
        optimizer.backward(losses)
        optimizer.step()
        self.log_dict({"first digit": losses[0], "second digit": losses[1]})


def main(ranks: int = 1, epochs: int = 10) -> list[float]:
    torch.manual_seed(0)
    train, test = pairs()
    module = TwoDigits(ranks)
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="auto", devices=ranks, strategy="ddp" if ranks > 1 else "auto",
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, loader(train, 64 // ranks))
    found = accuracies(module.model, test)
    if trainer.is_global_zero:
        print(f"{trainer.global_step} steps, accuracies {found[0]:.2f} and {found[1]:.2f}")
    return found


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
