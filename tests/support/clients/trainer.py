"""The Trainer of transformers with a training step of its own for each loop of the pages, and the same without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from support.clients.bert import STEPS, batches, loop_of, losses, model, rows, transformers
from support.clients.loops import Loop


class Trainer(transformers.Trainer):
    """Whose ``training_step`` calls our backward; everything else is the Trainer's own."""

    def __init__(self, loop: Loop, folder: Path, **options: Any) -> None:
        self.loop = loop
        usual = {"per_device_train_batch_size": 4, "max_steps": STEPS, "lr_scheduler_type": "linear"}
        quiet = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "save_strategy": "no", "logging_steps": 1}
        fixed = {"train_sampling_strategy": "sequential", "remove_unused_columns": False}
        args = transformers.TrainingArguments(str(folder), **{**usual, **quiet, **fixed, **options})
        super().__init__(model=loop.model, args=args, train_dataset=rows(), optimizers=(loop.optimizer, None))

    def training_step(self, net: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        net.train()
        seen = []

        def compute() -> list[torch.Tensor]:
            with self.compute_loss_context_manager():
                seen.append(losses(net, self._prepare_inputs(inputs)))
            return seen[-1]

        self.loop.backward(self.optimizer.optimizer, compute)
        return sum(seen[0]).detach()


def plain(name: str, *, clip: float = 1.0, accumulate: int = 1, autocast: bool = False, **options: Any) -> Loop:
    """The same without the Trainer."""
    loop = loop_of(name, model(), **options)
    schedule = transformers.get_scheduler("linear", loop.optimizer, 0, STEPS)
    every = batches() * accumulate
    for step, batch in enumerate(every):

        def compute(batch: Any = batch) -> list[torch.Tensor]:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                return losses(loop.model, batch)

        loop.backward(loop.optimizer, compute)
        if (step + 1) % accumulate == 0:
            if clip:
                nn.utils.clip_grad_norm_(loop.model.parameters(), clip)
            loop.optimizer.step()
            schedule.step()
            loop.optimizer.zero_grad()
    return loop
