"""Lightning's callbacks and precisions, and its Fabric, around the loops of the pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from support.clients.foreign import NOISE, library
from support.clients.lightning import Module, trainer
from support.clients.loops import LOOPS, STEPS, Compute, Net, assert_same, everything, loader, losses, moved, run

L: Any = library("lightning")
callbacks = library("lightning.pytorch.callbacks")


def in_autocast(compute: Compute) -> Compute:
    """The forward pass alone in autocast, each anew."""

    def computed() -> list[Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return compute()

    return computed


pytestmark = [pytest.mark.filterwarnings(text) for text in NOISE]
IN_LIGHTNING = [name for name in LOOPS if not name.startswith("connection strength")]


# ---------------------------------------------------------------- callbacks
@pytest.mark.parametrize("name", ["weighted", "weighted, closure", "one task"])
def test_running_averages_of_weights(name: str, tmp_path: Path) -> None:
    """EMAWeightAveraging: trains as without it, and ends with the average of the parameters after each step."""
    module = Module(name)
    trainer(tmp_path, callbacks=[callbacks.EMAWeightAveraging(decay=0.75)]).fit(module, loader())
    loop = LOOPS[name](Net())
    average = torch.optim.swa_utils.AveragedModel(
        loop.model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.75)
    )
    for x, y in loader():
        loop.step(loop.optimizer, lambda x=x, y=y: losses(loop.model, x, y))
        average.update_parameters(loop.model)
    for p, q in zip(module.net.parameters(), average.module.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["weighted", "weighted, closure", "one task"])
def test_stochastic_weight_averaging(name: str, tmp_path: Path) -> None:
    """The mean of the parameters at the starts of the second to fourth epoch becomes the model."""
    module = Module(name)
    swa = callbacks.StochasticWeightAveraging(swa_lrs=0.02, swa_epoch_start=2)
    trainer(tmp_path, max_epochs=4, callbacks=[swa]).fit(module, loader())
    loop = LOOPS[name](Net())
    seen = []
    for _ in range(3):
        for x, y in loader():
            loop.step(loop.optimizer, lambda x=x, y=y: losses(loop.model, x, y))
        seen.append(nn.utils.parameters_to_vector(loop.model.parameters()).detach())
    found = nn.utils.parameters_to_vector(module.net.parameters())
    torch.testing.assert_close(found, torch.stack(seen).mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["weighted", "mt2o"])
def test_learning_rates_are_monitored(name: str, tmp_path: Path) -> None:
    class Log(L.pytorch.loggers.logger.DummyLogger):
        def __init__(self) -> None:
            super().__init__()
            self.rates: list[float] = []

        def log_metrics(self, metrics: Any, step: Any = None) -> None:
            self.rates += [value for key, value in metrics.items() if key.startswith("lr-")]

        name = "log"

    module, log = Module(name, schedule=True), Log()
    monitor = callbacks.LearningRateMonitor("step")
    trainer(tmp_path, logger=log, log_every_n_steps=1, callbacks=[monitor]).fit(module, loader())
    assert log.rates == pytest.approx([0.02 * 0.5 ** (step // 2) for step in range(STEPS)])


# ---------------------------------------------------------------- precisions
@pytest.mark.parametrize("name", IN_LIGHTNING)
def test_mixed_precision(name: str, tmp_path: Path) -> None:
    module = Module(name)
    trainer(tmp_path, precision="bf16-mixed").fit(module, loader())
    loop = LOOPS[name](Net())
    for x, y in loader():
        loop.step(loop.optimizer, in_autocast(lambda x=x, y=y: losses(loop.model, x, y)))
    assert_same(everything(module.loop), everything(loop))
    assert moved(everything(loop)) > 0.05


@pytest.mark.parametrize("name", IN_LIGHTNING)
def test_true_bfloat16(name: str, tmp_path: Path) -> None:
    """Lightning sets the default dtype to bfloat16 meanwhile, which must reach none of our tables."""
    module = Module(name)
    trainer(tmp_path, precision="bf16-true").fit(module, loader())
    loop = LOOPS[name](Net().bfloat16())
    for x, y in loader():
        batch = x.bfloat16(), y.bfloat16()
        loop.step(loop.optimizer, lambda batch=batch: losses(loop.model, *batch))
    assert_same(everything(module.loop), everything(loop))
    assert all(p.dtype == torch.bfloat16 for p in module.net.parameters())


@pytest.mark.parametrize("name", ["weighted", "mt2o"])
def test_true_float64(name: str, tmp_path: Path) -> None:
    module = Module(name)
    trainer(tmp_path, precision="64-true").fit(module, loader())
    loop = LOOPS[name](Net().double())
    for x, y in loader():
        batch = x.double(), y.double()
        loop.step(loop.optimizer, lambda batch=batch: losses(loop.model, *batch))
    assert_same(everything(module.loop), everything(loop))


# ---------------------------------------------------------------- Fabric
@pytest.mark.parametrize("name", LOOPS)
def test_fabric(name: str) -> None:
    fabric = L.Fabric(accelerator="cpu", devices=1)
    loop = LOOPS[name](Net())
    net, optimizer = fabric.setup(loop.model, loop.optimizer)
    for x, y in fabric.setup_dataloaders(loader()):
        loop.step(optimizer, lambda x=x, y=y: losses(net, x, y))
    assert_same(everything(loop), run(name))


@pytest.mark.parametrize("name", LOOPS)
def test_fabric_in_mixed_precision(name: str) -> None:
    """With the model inside of ``fabric.autocast()``: what Fabric's own module returns wants ``fabric.backward``."""
    fabric = L.Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    loop, twin = LOOPS[name](Net()), LOOPS[name](Net())
    net, optimizer = fabric.setup(loop.model, loop.optimizer)

    def compute(x: Tensor, y: Tensor) -> list[Tensor]:
        with fabric.autocast():
            return losses(net.module, x, y)

    for x, y in loader():
        loop.step(optimizer, lambda x=x, y=y: compute(x, y))
        twin.step(twin.optimizer, in_autocast(lambda x=x, y=y: losses(twin.model, x, y)))
    assert_same(everything(loop), everything(twin))


@pytest.mark.parametrize("name", LOOPS)
def test_fabrics_own_module_in_mixed_precision(name: str) -> None:
    """Whose outputs are float32, and want ``fabric.backward``."""
    fabric = L.Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    ours = {} if name.startswith("one ") else {"backward": fabric.backward}
    loop, twin = LOOPS[name](Net(), **ours), LOOPS[name](Net())
    net, optimizer = fabric.setup(loop.model, loop.optimizer)
    if not ours:  # the user calls backward
        loop.backward = lambda optimizer, compute: fabric.backward(sum(compute()))  # type: ignore[assignment]

    class Float(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return twin.model(x).float()

    for x, y in loader():
        loop.step(optimizer, lambda x=x, y=y: losses(net, x, y))
        twin.step(twin.optimizer, lambda x=x, y=y: losses(Float(), x, y))
    assert_same(everything(loop), everything(twin))


@pytest.mark.parametrize("name", ["weighted", "mt2o", "mt2o, closure"])
def test_manual_backward(name: str, tmp_path: Path) -> None:
    """As a hook of Lightning for each backward sees it."""
    seen: list[float] = []

    class Watched(Module):
        def make(self) -> Any:
            return LOOPS[self.name](self.net, backward=self.manual_backward)

        def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
            seen.append(float(loss.detach()))
            super().backward(loss, *args, **kwargs)

    module = Watched(name)
    trainer(tmp_path, max_epochs=1).fit(module, loader())
    assert len(seen) == STEPS * (2 if name == "weighted" else 5)
    assert_same(everything(module.loop), run(name))


@pytest.mark.parametrize("name", ["weighted", "mt2o", "mt2o, weighting", "connection strength"])
def test_fabric_saves_and_loads(name: str, tmp_path: Path) -> None:
    fabric = L.Fabric(accelerator="cpu", devices=1)
    loop = LOOPS[name](Net())
    net, optimizer = fabric.setup(loop.model, loop.optimizer)
    batches = list(loader())
    for step, (x, y) in enumerate(batches):
        if step == 4:
            fabric.save(tmp_path / "saved.ckpt", {"model": net, "optimizer": optimizer})
        loop.step(optimizer, lambda x=x, y=y: losses(net, x, y))

    fresh = LOOPS[name](Net())
    other, again = fabric.setup(fresh.model, fresh.optimizer)
    fabric.load(tmp_path / "saved.ckpt", {"model": other, "optimizer": again})
    for x, y in batches[4:]:
        fresh.step(again, lambda x=x, y=y: losses(other, x, y))
    assert_same(everything(fresh), everything(loop))


@pytest.mark.parametrize("name", ["weighted", "one task"])
def test_fabric_clips(name: str) -> None:
    fabric = L.Fabric(accelerator="cpu", devices=1)
    loop, twin = LOOPS[name](Net()), LOOPS[name](Net())
    net, optimizer = fabric.setup(loop.model, loop.optimizer)
    for x, y in loader():
        loop.backward(optimizer, lambda x=x, y=y: losses(net, x, y))
        assert fabric.clip_gradients(net, optimizer, max_norm=0.05) > 0.05
        optimizer.step()
        optimizer.zero_grad()
        twin.backward(twin.optimizer, lambda x=x, y=y: losses(twin.model, x, y))
        nn.utils.clip_grad_norm_(twin.model.parameters(), 0.05)
        twin.optimizer.step()
        twin.optimizer.zero_grad()
    assert_same(everything(loop), everything(twin))
