"""The loops of the pages with a model on a GPU: as on the CPU, through autocast, checkpoints and trainers."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import fully_shard

from mt2o_ext import MT2OFused, WeightedBackward, WeightedFused
from mt2o_ext.transfer import Spectral
from support.clients.foreign import NOISE, library
from support.clients.loops import LOOPS, Loop, Net, assert_same, everything, loader, losses, moved

pytestmark = [pytest.mark.gpu, *(pytest.mark.filterwarnings(text) for text in NOISE)]

ROOT = Path(__file__).parents[2]
each_loop = pytest.mark.parametrize("name", LOOPS)
# Of these the tests need to begin with the same parameters on both devices.
unconverted = pytest.mark.parametrize("name", [name for name in LOOPS if not name.startswith("connection strength")])


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = tf32


def loop_of(name: str, device: str = "cuda", **options: Any) -> Loop:
    with torch.device(device):
        return LOOPS[name](Net().to(device), **options)


def batches(device: str = "cuda", times: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    for _ in range(times):
        for x, y in loader():
            yield x.to(device), y.to(device)


def fit(loop: Loop, device: str = "cuda", times: int = 1) -> Loop:
    for x, y in batches(device, times):
        loop.step(loop.optimizer, lambda x=x, y=y: losses(loop.model, x, y))
    return loop


def on_cpu(found: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in found.items() if value.is_floating_point()}


@unconverted
def test_as_on_the_cpu(name: str) -> None:
    found, expected = everything(fit(loop_of(name))), everything(fit(loop_of(name, "cpu"), "cpu"))
    models = [key for key in expected if key.startswith("model.")]
    assert_same(on_cpu({key: found[key] for key in models}), {key: expected[key] for key in models}, 1e-4)


@each_loop
def test_the_same_bits_in_every_run(name: str) -> None:
    assert_same(everything(fit(loop_of(name))), everything(fit(loop_of(name))))


@each_loop
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_around_the_forward_pass(name: str, dtype: torch.dtype) -> None:
    loop = loop_of(name)

    def compute(x: Tensor, y: Tensor) -> list[Tensor]:
        with torch.autocast("cuda", dtype=dtype):
            return losses(loop.model, x, y)

    for x, y in batches():
        loop.step(loop.optimizer, lambda x=x, y=y: compute(x, y))
    found = everything(loop)
    assert all(p.isfinite().all() for p in loop.model.parameters())
    if not name.startswith("connection strength"):
        assert moved(on_cpu(found)) > 1e-3


@pytest.mark.parametrize("name", ["weighted", "heads", "mt2o", "mt2o, weighting"])
def test_a_scaler_that_meets_an_infinite_loss(name: str) -> None:
    """The step is skipped, the scale halved, and training goes on."""
    loop, scaler = loop_of(name), torch.amp.GradScaler("cuda", init_scale=2.0**10)
    optimizer: Any = loop.optimizer
    for index, (x, y) in enumerate(batches()):
        before = [p.detach().clone() for p in loop.model.parameters()]
        for _ in optimizer.subproblems() if hasattr(optimizer, "subproblems") else [0]:
            with torch.autocast("cuda", dtype=torch.float16):
                computed = losses(loop.model, x * (torch.inf if index == 3 else 1), y)
            optimizer.backward(computed, scaler=scaler)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        same = [torch.equal(p, old) for p, old in zip(loop.model.parameters(), before, strict=True)]
        assert all(same) if index == 3 else not any(same)
    assert scaler.get_scale() == 2.0**9


@unconverted
@pytest.mark.parametrize("devices", [("cuda", "cpu"), ("cpu", "cuda"), ("cuda", "cuda")], ids="-".join)
def test_a_checkpoint_goes_on_with_another_device(name: str, devices: tuple[str, str], tmp_path: Path) -> None:
    first, second = devices
    loop = fit(loop_of(name, first), first)
    torch.save({"model": loop.model.state_dict(), "optimizer": loop.optimizer.state_dict()}, tmp_path / "file")
    saved = torch.load(tmp_path / "file", map_location=second)
    resumed = loop_of(name, second)
    resumed.model.load_state_dict(saved["model"])
    resumed.optimizer.load_state_dict(saved["optimizer"])
    found, expected = everything(fit(resumed, second)), everything(fit(loop, first))
    models = [key for key in expected if key.startswith("model.")]
    tolerance = 0.0 if first == second else 1e-4
    assert_same(*(on_cpu({key: of[key] for key in models}) for of in (found, expected)), tolerance)


@unconverted
def test_memory_does_not_grow(name: str) -> None:
    loop = fit(loop_of(name))
    before = torch.cuda.memory_allocated()
    fit(loop, times=4)
    assert torch.cuda.memory_allocated() <= before + 4096


@unconverted
def test_a_model_that_moves_after_the_optimizer_was_made(name: str) -> None:
    """As with torch's optimizers it goes on where the model is, or says that the model moves first."""
    loop = loop_of(name, "cpu")
    loop.model.to("cuda")
    try:
        fit(loop)
    except (RuntimeError, ValueError) as error:
        assert "device" in str(error) and "move" in str(error)  # noqa: PT017
    else:
        models = {key: value for key, value in everything(loop).items() if key.startswith("model.")}
        assert all(value.is_cuda for value in models.values())
        expected = everything(fit(loop_of(name)))
        assert_same(on_cpu(models), on_cpu({key: expected[key] for key in models}), 1e-4)


@pytest.mark.parametrize("front", ["vertices", "rows"])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_front(front: str, compiled: bool) -> None:
    net = Net().cuda()
    options: dict[str, Any] = {"transfer": Spectral()} if front == "rows" else {"front": front, "points": 4}
    optimizer = MT2OFused(net.parameters(), num_tasks=2, lr=1e-2, ema=0.9, history=5, **options)
    model = torch.compile(net) if compiled else net
    for x, y in batches(times=3):
        optimizer.step(lambda x=x, y=y: losses(model, x, y))
    x, y = next(batches())
    found = optimizer.front(lambda: losses(net, x, y), ema=True)
    assert found.losses.isfinite().all()
    with optimizer.subproblem(1, ema=True):
        assert next(net.parameters()).is_cuda
    again = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(again)
    assert len(optimizer.history()) == 5


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_of_cudnn(kind: Any) -> None:
    """cuDNN wants their weights in one piece, which the optimizer's memory is not: it says so once, and trains."""
    torch.manual_seed(0)
    layer, head = kind(6, 12, num_layers=2, batch_first=True).cuda(), nn.Linear(12, 2).cuda()
    optimizer = WeightedFused([*layer.parameters(), *head.parameters()], num_tasks=2, weighting="upgrad", lr=1e-2)
    x = torch.randn(8, 5, 6, device="cuda")
    values = []
    for _ in range(30):
        out = head(layer(x)[0][:, -1])
        values.append([(out[:, 0] - 1).square().mean(), (out[:, 1] + 1).square().mean()])
        optimizer.backward(values[-1])
        optimizer.step()
    assert all(last < 0.5 * first for first, last in zip(values[0], values[-1], strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_channels_last_and_batch_norm(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 2, 3))
    net = net.to("cuda", dtype, memory_format=torch.channels_last)
    optimizer = MT2OFused(net.parameters(), num_tasks=2, lr=1e-2, front="vertices", points=3, buffers=net.buffers())
    x = torch.randn(8, 3, 12, 12, device="cuda", dtype=dtype).to(memory_format=torch.channels_last)

    def compute() -> list[Tensor]:
        out = net(x).float().mean((2, 3))
        return [(out[:, 0] - 1).square().mean(), (out[:, 1] + 1).square().mean()]

    first = torch.stack(compute()).sum().item()
    for _ in range(40):
        optimizer.step(compute)
    assert torch.stack(compute()).sum().item() < 0.7 * first
    assert net[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.fixture
def _one_rank(tmp_path: Path) -> Iterator[None]:
    if not distributed.is_nccl_available():
        pytest.skip("torch was built without NCCL")
    torch.cuda.set_device(0)
    distributed.init_process_group("nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("_one_rank")
@pytest.mark.parametrize("name", ["weighted", "mt2o", "mt2o, weighting"])
def test_a_process_group_of_nccl(name: str) -> None:
    found, expected = everything(fit(loop_of(name, process_group=True))), everything(fit(loop_of(name)))
    models = [key for key in expected if key.startswith("model.")]
    assert_same({key: found[key] for key in models}, {key: expected[key] for key in models}, 1e-6)


@pytest.mark.usefixtures("_one_rank")
def test_a_model_that_fsdp_has_sharded() -> None:
    nets = [Net().cuda(), Net().cuda()]
    fully_shard(nets[0])
    for net in nets:
        backward = WeightedBackward(net.parameters(), num_tasks=2, weighting="upgrad")
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
        for x, y in batches():
            optimizer.zero_grad()
            backward(losses(net, x, y))
            optimizer.step()
    check_same_as_sharded(*nets)


@pytest.mark.usefixtures("_one_rank")
@pytest.mark.parametrize("front", [False, True], ids=["weighted", "front"])
def test_fused_optimizers_of_a_model_that_fsdp_has_sharded(front: bool) -> None:
    nets = [Net().cuda(), Net().cuda()]
    fully_shard(nets[0])
    for net in nets:
        optimizer: Any = (
            MT2OFused(net.parameters(), num_tasks=2, num_subproblems=2, front="rows", lr=1e-2)
            if front
            else WeightedFused(net.parameters(), num_tasks=2, weighting="upgrad", max_norm=0.5, lr=1e-2)
        )
        for x, y in batches():
            optimizer.step(lambda net=net, x=x, y=y: losses(net, x, y))
    check_same_as_sharded(*nets)


def check_same_as_sharded(first: Net, second: Net) -> None:
    for sharded, plain in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(sharded.full_tensor(), plain.detach(), rtol=1e-5, atol=1e-6)  # type: ignore[operator]


@pytest.mark.parametrize("name", ["weighted", "mt2o", "mt2o, closure", "one task"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_lightning(name: str, precision: str, tmp_path: Path) -> None:
    library("lightning")
    from support.clients.lightning import Module, trainer

    module = Module(name)
    trainer(tmp_path, accelerator="gpu", devices=1, precision=precision).fit(module, loader())
    found = on_cpu(everything(module.loop))
    assert moved(found) > 1e-3 and all(value.isfinite().all() for key, value in found.items() if "model." in key)


EXAMPLES = ("plain", "amp", "own_batches", "front_on_vertices", "serve_front", "in_lightning", "in_accelerate",
            "in_hf_trainer", "lora", "ddp", "fsdp", "subproblems_over_ranks")  # fmt: skip


NEEDS = {"in_lightning": "lightning", "in_accelerate": "accelerate", "in_hf_trainer": "transformers", "lora": "peft"}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_as_a_user_starts_it(name: str) -> None:
    needs = {
        "in_lightning": "lightning",
        "in_accelerate": "accelerate",
        "in_hf_trainer": "transformers",
        "lora": "peft",
    }
    if name in needs:
        library(needs[name])
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    start = torchrun if name in ("ddp", "fsdp", "subproblems_over_ranks") else []
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, *start, str(ROOT / "examples" / f"{name}.py")], env={**os.environ, "PYTHONPATH": paths},
        cwd=ROOT, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "accurac" in done.stdout
