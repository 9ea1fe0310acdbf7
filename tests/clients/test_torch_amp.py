"""torch's own tools around a step: GradScaler, autocast, clipping, recurrent layers that re-point their weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from support.clients.loops import LOOPS, Compute, Loop, Net, assert_same, everything, loader, losses, run

BY_BACKWARD = ["weighted", "heads", "weighting of losses", "mt2o", "mt2o, weighting", "weighted backward", "one task",
               "one subproblem"]  # fmt: skip


def autocast(dtype: torch.dtype, compute: Compute) -> Compute:
    def computed() -> list[Tensor]:
        with torch.autocast("cpu", dtype=dtype):
            return compute()

    return computed


# ---------------------------------------------------------------- autocast
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", LOOPS)
def test_autocast_around_the_whole_step(name: str, dtype: torch.dtype) -> None:
    """As around the forward pass alone: a cached 16-bit copy of a parameter must not outlive a change of it."""
    loop, twin = LOOPS[name](Net()), LOOPS[name](Net())
    for x, y in loader():
        with torch.autocast("cpu", dtype=dtype):
            loop.step(loop.optimizer, lambda x=x, y=y: losses(loop.model, x, y))
        twin.step(twin.optimizer, autocast(dtype, lambda x=x, y=y: losses(twin.model, x, y)))
    assert_same(everything(loop), everything(twin))


# ---------------------------------------------------------------- scalers
def scaled_step(loop: Loop, scaler: Any, compute: Compute, *, clip: float | None = None) -> None:
    kind = type(loop).__name__
    if kind.startswith("One"):
        scaler.scale(sum(compute())).backward()
    elif kind == "AnyOptimizer":
        loop.optimizer.zero_grad()
        loop.weigh(compute(), scaler=scaler)
    else:
        optimizer: Any = loop.optimizer
        for _ in optimizer.subproblems() if hasattr(optimizer, "subproblems") else [0]:
            optimizer.backward(compute(), scaler=scaler)
    if clip is not None:
        scaler.unscale_(loop.optimizer)
        nn.utils.clip_grad_norm_(loop.model.parameters(), clip)
    scaler.step(loop.optimizer)
    scaler.update()
    loop.optimizer.zero_grad()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", BY_BACKWARD)
def test_a_scaler_changes_nothing(name: str, dtype: torch.dtype) -> None:
    """A power of two as factor: the numbers of the run without a scaler, in 16-bit autocast."""
    loop, twin = LOOPS[name](Net()), LOOPS[name](Net())
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=1000)
    for x, y in loader():
        scaled_step(loop, scaler, autocast(dtype, lambda x=x, y=y: losses(loop.model, x, y)))
        twin.step(twin.optimizer, autocast(dtype, lambda x=x, y=y: losses(twin.model, x, y)))
    # float16 gradients below the smallest normal number are kept by the factor: that is what it is for
    assert_same(everything(loop), everything(twin), 1e-6 if dtype == torch.bfloat16 else 5e-3)
    assert scaler.get_scale() == 256.0


@pytest.mark.parametrize("name", BY_BACKWARD)
def test_a_scaler_skips_an_infinite_step(name: str) -> None:
    loop, twin = LOOPS[name](Net()), LOOPS[name](Net())
    scaler, other = (torch.amp.GradScaler("cpu", init_scale=256.0) for _ in range(2))
    for step, (x, y) in enumerate(loader()):
        factor = float("inf") if step == 3 else 1.0
        before = everything(loop)
        scaled_step(loop, scaler, lambda x=x, y=y, f=factor: [f * one for one in losses(loop.model, x, y)])
        if step == 3:
            assert_same(dict(loop.model.state_dict()), {k[6:]: v for k, v in before.items() if k.startswith("model.")})
            assert scaler.get_scale() == 128.0
        else:
            scaled_step(twin, other, lambda x=x, y=y: losses(twin.model, x, y))
    found, expected = everything(loop), everything(twin)
    models = [key for key in expected if "skipped" not in key and "generator" not in key]
    assert_same({key: found[key] for key in models}, {key: expected[key] for key in models}, 1e-6)


@pytest.mark.parametrize("name", ["weighted", "heads", "weighting of losses", "weighted backward", "one task"])
def test_unscale_and_clip(name: str) -> None:
    loop, twin = LOOPS[name](Net()), LOOPS[name](Net())
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    for x, y in loader():
        scaled_step(loop, scaler, lambda x=x, y=y: losses(loop.model, x, y), clip=0.05)
        twin.backward(twin.optimizer, lambda x=x, y=y: losses(twin.model, x, y))
        assert nn.utils.clip_grad_norm_(twin.model.parameters(), 0.05) > 0.05
        twin.optimizer.step()
        twin.optimizer.zero_grad()
    assert_same(everything(loop), everything(twin), 1e-6)


def test_connection_strength_takes_no_scaler() -> None:
    """It says so, before anything is changed."""
    loop = LOOPS["connection strength"](Net())
    before, scaler = everything(loop), torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(1))
    with pytest.raises((AssertionError, RuntimeError, TypeError), match=r"closure|inf checks"):
        scaler.step(loop.optimizer)
    assert_same(everything(loop), before)


# ---------------------------------------------------------------- clipping
CLIPS = {
    "norm": lambda params: nn.utils.clip_grad_norm_(params, 0.05),
    "norm, not foreach": lambda params: nn.utils.clip_grad_norm_(params, 0.05, foreach=False),
    "value": lambda params: nn.utils.clip_grad_value_(params, 0.01),
    "by hand": lambda params: [p.grad.data.clamp_(-0.01, 0.01) for p in params],
    "another tensor": lambda params: [setattr(p, "grad", 0.1 * p.grad) for p in params],
}


@pytest.mark.parametrize("how", CLIPS)
@pytest.mark.parametrize("name", ["weighted", "heads", "weighting of losses", "weighted backward", "one task"])
def test_gradients_are_clipped(name: str, how: str) -> None:
    """With SGD at a rate of one the step is the clipped gradient."""
    options = {} if name == "weighted backward" else {"base": "sgd"}
    loop = LOOPS[name](Net(), lr=1.0, **options)
    if name == "weighted backward":
        loop.optimizer = torch.optim.SGD(loop.model.parameters(), lr=1.0)
    for x, y in loader():
        loop.backward(loop.optimizer, lambda x=x, y=y: losses(loop.model, x, y))
        parameters = list(loop.model.parameters())
        CLIPS[how](parameters)
        before = [p.detach().clone() for p in parameters]
        gradients = [p.grad.clone() for p in parameters]
        loop.optimizer.step()
        for p, old, gradient in zip(parameters, before, gradients, strict=True):
            torch.testing.assert_close(p.detach(), old - gradient, rtol=0, atol=1e-6)
        loop.optimizer.zero_grad()


@pytest.mark.parametrize("name", ["mt2o", "mt2o, weighting", "mt2o, closure"])
def test_each_subproblem_is_clipped(name: str) -> None:
    loop: Any = LOOPS[name](Net(), lr=1.0, base="sgd", transfer=None, max_norm=0.05)
    rows = []
    for x, y in loader():
        loop.step(loop.optimizer, lambda x=x, y=y: losses(loop.model, x, y))
        norms, now = loop.optimizer.grad_norm, []
        for k in range(len(norms)):
            with loop.optimizer.subproblem(k):
                now.append(nn.utils.parameters_to_vector(loop.model.parameters()).detach().clone())
        if rows:
            steps = torch.stack([(a - b).norm() for a, b in zip(now, rows, strict=True)]).double()
            torch.testing.assert_close(steps, norms.clamp(max=0.05), rtol=1e-4, atol=1e-6)
        rows = now


# ---------------------------------------------------------------- weights that move
class Recurrent(nn.Module):
    """An LSTM that makes its weights anew in each forward pass, as ``flatten_parameters`` does on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.LSTM(5, 6, batch_first=True)
        self.heads = nn.ModuleList([nn.Linear(6, 1), nn.Linear(6, 1)])
        self.flatten = True

    def forward(self, x: Tensor) -> Tensor:
        if self.flatten:
            flat = torch.cat([p.data.reshape(-1) for p in self.trunk.parameters()])
            offset = 0
            for p in self.trunk.parameters():
                p.data = flat[offset : offset + p.numel()].view(p.shape)
                offset += p.numel()
        z, _ = self.trunk(x.unsqueeze(1).expand(-1, 3, -1))
        return torch.cat([head(z[:, -1]) for head in self.heads], 1)


@pytest.mark.parametrize("name", [name for name in LOOPS if not name.startswith("connection strength")])
def test_recurrent_weights_that_are_flattened_anew(name: str) -> None:
    net, plain = Recurrent(), Recurrent()
    plain.flatten = False
    loop, twin = LOOPS[name](net), LOOPS[name](plain)
    for x, y in loader():
        for one in (loop, twin):
            one.step(one.optimizer, lambda x=x, y=y, m=one.model: losses(m, x, y))
    assert_same(everything(loop), everything(twin))
    assert not torch.equal(net.trunk.weight_ih_l0, Recurrent().trunk.weight_ih_l0)


@pytest.mark.parametrize("name", ["weighted", "mt2o", "connection strength", "one task"])
def test_a_model_that_is_converted_between_steps(name: str) -> None:
    """To float64 and back, which changes no bit."""
    loop = LOOPS[name](Net())
    for x, y in loader():
        loop.step(loop.optimizer, lambda x=x, y=y: losses(loop.model, x, y))
        loop.model.double()
        loop.model.float()
    assert_same(everything(loop), run(name))
