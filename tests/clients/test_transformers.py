"""The Trainer of transformers, with a training step of its own for each loop of the pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from support.clients.bert import NAMES, STEPS, TwoHeads, loop_of, losses, model, transformers
from support.clients.foreign import NOISE
from support.clients.loops import assert_same, everything
from support.clients.trainer import Trainer, plain

pytestmark = [pytest.mark.filterwarnings(text) for text in NOISE]


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
