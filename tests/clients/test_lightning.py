"""Lightning: manual optimization as the pages write it, Fabric, checkpoints, callbacks, precisions, two processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from support.clients.foreign import NOISE, library
from support.clients.lightning import Module, trainer
from support.clients.loops import LOOPS, STEPS, Net, assert_same, everything, loader, losses, run

L: Any = library("lightning")
callbacks = library("lightning.pytorch.callbacks")

pytestmark = [pytest.mark.filterwarnings(text) for text in NOISE]


def each(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", names)


@each(*LOOPS)
def test_the_loops_of_the_pages(name: str, tmp_path: Path) -> None:
    module = Module(name)
    trainer(tmp_path).fit(module, loader())
    assert_same(everything(module.loop), run(name))
    assert module.seen == list(range(1, STEPS + 1))


@each("weighted", "mt2o", "mt2o, closure", "connection strength", "connection strength, loop")
def test_max_steps_counts_steps(name: str, tmp_path: Path) -> None:
    module = Module(name)
    trainer(tmp_path, max_steps=3, max_epochs=-1).fit(module, loader())
    assert module.seen == [1, 2, 3]
    assert_same(everything(module.loop), run(name, 3))


@pytest.mark.parametrize("name", ["weighted", "mt2o", "connection strength"])
def test_a_loop_on_the_bare_optimizer(name: str, tmp_path: Path) -> None:
    """``use_pl_optimizer=False``: right, though Lightning does not count the steps then."""

    class Bare(Module):
        def training_step(self, batch: Any, index: int) -> None:
            self.loop.step(self.optimizers(use_pl_optimizer=False), lambda: losses(self.net, *batch))

    module = Bare(name)
    trainer(tmp_path).fit(module, loader())
    assert_same(everything(module.loop), run(name))


@each(
    *(name for name in LOOPS if not name.startswith("connection strength"))
)  # whose model is converted too late, in these loops
def test_resumed_from_a_checkpoint(name: str, tmp_path: Path) -> None:
    """Saved by ModelCheckpoint, loaded into a new module: the bits of the run that went through."""
    saver = callbacks.ModelCheckpoint(dirpath=tmp_path, save_top_k=-1, filename="{epoch}")
    through = Module(name, schedule=True)
    trainer(tmp_path, max_epochs=2, enable_checkpointing=True, callbacks=[saver]).fit(through, loader())
    saved = tmp_path / "epoch=0.ckpt"
    assert saved.exists()

    resumed = Module(name, schedule=True)
    trainer(tmp_path, max_epochs=2).fit(resumed, loader(), ckpt_path=saved)
    assert resumed.seen == list(range(STEPS + 1, 2 * STEPS + 1))
    assert_same(everything(resumed.loop), everything(through.loop))


@each("weighted", "mt2o", "mt2o, weighting", "connection strength", "connection strength, loop")
def test_a_checkpoint_of_plain_tensors(name: str, tmp_path: Path) -> None:
    module = Module(name)
    fitted = trainer(tmp_path)
    fitted.fit(module, loader())
    fitted.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    fresh = LOOPS[name](Net())
    fresh.model.load_state_dict({key.removeprefix("net."): value for key, value in saved["state_dict"].items()})
    fresh.optimizer.load_state_dict(saved["optimizer_states"][0])
    assert_same(everything(fresh), everything(module.loop))


@pytest.mark.parametrize("name", ["weighted", "heads", "weighting of losses", "weighted backward", "one task"])
def test_clipping(name: str, tmp_path: Path) -> None:
    """``self.clip_gradients`` where ``.grad`` is what the step uses, as ``clip_grad_norm_`` in a plain loop."""
    bound = 0.05

    class Clipped(Module):
        def training_step(self, batch: Any, index: int) -> None:
            optimizer = self.optimizers()
            self.loop.backward(optimizer, lambda: losses(self.net, *batch))
            self.clip_gradients(optimizer, gradient_clip_val=bound, gradient_clip_algorithm="norm")
            optimizer.step()
            optimizer.zero_grad()

    module = Clipped(name)
    trainer(tmp_path).fit(module, loader())
    loop = LOOPS[name](Net())
    for x, y in loader():
        loop.backward(loop.optimizer, lambda x=x, y=y: losses(loop.model, x, y))
        assert torch.nn.utils.clip_grad_norm_(loop.model.parameters(), bound) > bound
        loop.optimizer.step()
        loop.optimizer.zero_grad()
    assert_same(everything(module.loop), everything(loop))


@each("weighted", "mt2o", "mt2o, weighting", "connection strength", "connection strength, loop")
def test_clipping_within_the_step(name: str, tmp_path: Path) -> None:
    module = Module(name, max_norm=0.05)
    trainer(tmp_path).fit(module, loader())
    assert_same(everything(module.loop), run(name, max_norm=0.05))
    assert module.optimizers().grad_norm.min() > 0.05


@pytest.mark.parametrize("name", ["weighted", "mt2o"])
def test_automatic_optimization_says_what_is_missing(name: str, tmp_path: Path) -> None:
    class Automatic(Module):
        def training_step(self, batch: Any, index: int) -> Tensor:
            return torch.stack(losses(self.net, *batch)).sum()

    module = Automatic(name)
    module.automatic_optimization = True
    with pytest.raises((RuntimeError, TypeError, ValueError), match=r"loss|backward"):
        trainer(tmp_path).fit(module, loader())


@pytest.mark.parametrize("name", ["one task", "one subproblem"])
def test_automatic_optimization_of_one_task(name: str, tmp_path: Path) -> None:
    class Automatic(Module):
        def training_step(self, batch: Any, index: int) -> Tensor:
            return sum(losses(self.net, *batch))

    module = Automatic(name)
    module.automatic_optimization = True
    trainer(tmp_path, gradient_clip_val=0.05).fit(module, loader())
    twin = Net()
    theirs = torch.optim.AdamW(twin.parameters(), lr=0.02)
    for x, y in loader():
        theirs.zero_grad()
        sum(losses(twin, x, y)).backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.05)
        theirs.step()
    for p, q in zip(module.net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
