"""The Trainer of transformers, with a training step of its own for each loop of the pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bert import NAMES, STEPS, TwoHeads, batches, loop_of, losses, model, rows, transformers
from foreign import NOISE
from loops import Loop, assert_same, everything
from torch import nn

pytestmark = [pytest.mark.filterwarnings(text) for text in NOISE]


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


@pytest.mark.parametrize("name", NAMES)
def test_trains_as_the_plain_loop(name: str, tmp_path: Path) -> None:
    loop = loop_of(name, model())
    trainer = Trainer(loop, tmp_path)
    trainer.train()
    assert_same(everything(loop), everything(plain(name)))
    assert trainer.state.global_step == STEPS


@pytest.mark.parametrize("name", ["weighted", "weighting of losses", "weighted backward", "one task"])
def test_clips_as_the_plain_loop(name: str, tmp_path: Path) -> None:
    loop = loop_of(name, model())
    trainer = Trainer(loop, tmp_path, max_grad_norm=0.01)
    trainer.train()
    assert_same(everything(loop), everything(plain(name, clip=0.01)))
    norms = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    assert len(norms) == STEPS and min(norms) > 0.01


@pytest.mark.parametrize("name", ["mt2o", "mt2o, weighting"])
def test_subproblems_are_clipped_in_the_step(name: str, tmp_path: Path) -> None:
    """``max_grad_norm=0`` for the Trainer, ``max_norm=`` for the optimizer."""
    loop = loop_of(name, model(), max_norm=0.01)
    Trainer(loop, tmp_path, max_grad_norm=0.0).train()
    assert_same(everything(loop), everything(plain(name, clip=0.0, max_norm=0.01)))


@pytest.mark.parametrize("name", NAMES)
def test_mixed_precision(name: str, tmp_path: Path) -> None:
    loop = loop_of(name, model())
    Trainer(loop, tmp_path, bf16=True).train()
    assert_same(everything(loop), everything(plain(name, autocast=True)))


@pytest.mark.parametrize("name", ["weighted", "mt2o", "mt2o, weighting", "one task"])
def test_accumulation(name: str, tmp_path: Path) -> None:
    loop = loop_of(name, model())
    Trainer(loop, tmp_path, gradient_accumulation_steps=2).train()
    assert_same(everything(loop), everything(plain(name, accumulate=2)))


@pytest.mark.parametrize("name", NAMES)
def test_resumed_from_a_checkpoint(name: str, tmp_path: Path) -> None:
    through, resumed = loop_of(name, model()), loop_of(name, model())
    Trainer(through, tmp_path, save_strategy="steps", save_steps=STEPS // 2).train()
    middle = tmp_path / f"checkpoint-{STEPS // 2}"
    trainer = Trainer(resumed, tmp_path)
    trainer.train(resume_from_checkpoint=str(middle))
    assert_same(everything(resumed), everything(through))


@pytest.mark.parametrize("name", ["weighted", "mt2o", "mt2o, weighting"])
def test_save_pretrained(name: str, tmp_path: Path) -> None:
    loop: Any = loop_of(name, model())
    Trainer(loop, tmp_path).train()
    loop.model.save_pretrained(tmp_path / "whole")
    assert_same(dict(TwoHeads.from_pretrained(tmp_path / "whole").state_dict()), dict(loop.model.state_dict()))
    if name == "weighted":
        return
    with loop.optimizer.subproblem(3):
        loop.model.save_pretrained(tmp_path / "third")
        expected = {key: value.clone() for key, value in loop.model.state_dict().items()}
    assert_same(dict(TwoHeads.from_pretrained(tmp_path / "third").state_dict()), expected)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_gradient_checkpointing(name: str, use_reentrant: bool, tmp_path: Path) -> None:
    loop = loop_of(name, model())
    options = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": use_reentrant}}
    Trainer(loop, tmp_path, **options).train()
    assert_same(everything(loop), everything(plain(name)), 1e-6)


@pytest.mark.parametrize("name", ["weighted", "mt2o"])
def test_the_trainers_own_step_says_what_is_missing(name: str, tmp_path: Path) -> None:
    """Without a training step of ours: an error or a warning that names backward, not a model that learns nothing."""
    loop = loop_of(name, model())

    class Summed(Trainer):
        training_step = transformers.Trainer.training_step

        def compute_loss(self, net: nn.Module, inputs: Any, **_: Any) -> torch.Tensor:
            return sum(losses(net, inputs))

    with pytest.raises((RuntimeError, ValueError, UserWarning), match="backward"):
        Summed(loop, tmp_path).train()
