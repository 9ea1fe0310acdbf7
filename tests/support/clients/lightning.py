"""The loops of the pages as a module of Lightning, and a quiet Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from support.clients.foreign import library
from support.clients.loops import LOOPS, Loop, Net, losses

L: Any = library("lightning")


class Module(L.LightningModule):
    """The loop of a page in ``training_step``."""

    def __init__(self, name: str, *, schedule: bool = False, **options: Any) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net = Net()
        self.name, self.schedule, self.options = name, schedule, options
        self.seen: list[int] = []

    def make(self) -> Loop:
        return LOOPS[self.name](self.net, **self.options)

    def configure_optimizers(self) -> Any:
        self.loop = self.make()
        if not self.schedule:
            return self.loop.optimizer
        return [self.loop.optimizer], [torch.optim.lr_scheduler.StepLR(self.loop.optimizer, 2, 0.5)]

    def training_step(self, batch: Any, index: int) -> None:
        self.loop.step(self.optimizers(), lambda: losses(self.net, *batch))
        if self.schedule:
            self.lr_schedulers().step()
        self.seen.append(self.trainer.global_step)


def trainer(folder: Path, **options: Any) -> Any:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return L.Trainer(default_root_dir=folder, **{**quiet, "max_epochs": 1, "enable_checkpointing": False, **options})
