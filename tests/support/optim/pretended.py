"""Steps on a device that has no memory: where a step would wait for it, or mixes it with the CPU, is an error.

Run as a program of its own, since it registers a device for good: prints a line for each case.  Tensors there are fake
ones: they have a shape, a dtype and a device, but no values that the host could read.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from mt2o_ext import ConnectionStrengthFused, HarmonyFused, MT2OFused, SubproblemBank, WeightedBackward, _native
from mt2o_ext.base import AdamW
from mt2o_ext.device import LateCopy
from mt2o_ext.optim import mt2o
from mt2o_ext.optim.blend import Blend
from mt2o_ext.priority import find_connections
from mt2o_ext.scalarization import PBI, Log
from mt2o_ext.transfer import (
    CrossLearning,
    DistanceDecrease,
    GumbelPrior,
    Hat,
    Mean,
    Moments,
    Neighbours,
    Spectral,
    WithLearningRate,
)
from mt2o_ext.weighting import PaMaL
from support.optim.priority_model import network
from support.optim.problems import make_model, task_losses
from support.optim.towers import WEIGHTINGS, Towers, weighted

_setup_privateuseone_for_python_backend("gpu")
GPU = torch.device("gpu", 0)
STEPS = 2  # of which the first may wait


class NoMemory(TorchDispatchMode):
    """Runs what concerns the device on fake tensors, and with ``strict`` refuses what the host would wait for.

    (Fake tensors refuse two devices in one operation, and to tell a value.)
    """

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.strict = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = args, kwargs or {}
        leaves = tree_leaves(given)
        if not any(isinstance(leaf, FakeTensor) or (isinstance(leaf, torch.device) and leaf == GPU) for leaf in leaves):
            return func(*args, **(kwargs or {}))
        args, kwargs = tree_map_only(Tensor, self._faked, given)
        with self.fake:
            result = func(*args, **kwargs)
        if self.strict and _devices(leaves) - {"cpu"} and "cpu" in _devices(tree_leaves(result)):
            raise RuntimeError(f"{func} brings a tensor to the CPU")
        return result

    def _faked(self, tensor: Tensor) -> Tensor:
        return self.fake.from_tensor(tensor) if _is_real(tensor) else tensor


def _devices(values: list[Any]) -> set[str]:
    return {value.device.type for value in values if isinstance(value, Tensor)}


def _is_real(value: object) -> bool:
    return isinstance(value, Tensor) and not isinstance(value, FakeTensor)


def moved(model: nn.Module) -> nn.Module:
    """The model with parameters there, side by side in one memory: addresses of fake memory begin at zero."""
    memory, at = torch.zeros(100_000, device=GPU), 0
    for module in model.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(memory[at : at + p.numel()].view(p.shape)))
            at += p.numel() + 64
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.zeros(buffer.shape, dtype=buffer.dtype, device=GPU))
    return model


def steps(mode: NoMemory, step: Callable[[], Any]) -> None:
    for index in range(STEPS):
        mode.strict = index > 0
        try:
            step()
        finally:
            mode.strict = False


def of_weighted(mode: NoMemory, name: str) -> None:
    model: Any = moved(Towers())
    optimizer, batch = weighted(model, WEIGHTINGS[name]()), torch.zeros(16, 7, device=GPU)
    steps(mode, lambda: (optimizer.step(lambda: model.losses(batch)), optimizer.epoch_end()))


def of_backward(mode: NoMemory, **options: Any) -> None:
    model: Any = moved(Towers())
    backward, batch = WeightedBackward(model.groups(), num_tasks=3, **options), torch.zeros(16, 7, device=GPU)
    steps(mode, lambda: backward(model.losses(batch)))


def of_mt2o(mode: NoMemory, *, dtype: torch.dtype = torch.float32, **options: Any) -> None:
    model = moved(make_model(dtype))
    given = {"num_tasks": 2, "num_subproblems": 4, "front": "rows"}
    optimizer = MT2OFused(model.parameters(), **{**given, **options})
    batch = torch.zeros(16, 7, dtype=dtype, device=GPU)
    steps(mode, lambda: optimizer.step(lambda: task_losses(model(batch), batch[:, 0])))


def of_bank(mode: NoMemory, front: str) -> None:
    bank = moved(SubproblemBank(make_model(), 5))
    optimizer = MT2OFused(bank.parameters(), num_tasks=2, num_subproblems=5, stacked=True, front=front)
    batch = torch.zeros(5, 16, 7, device=GPU)
    steps(mode, lambda: optimizer.step(lambda: task_losses(bank(batch), batch[..., 0])))


def of_connection_strength(mode: NoMemory) -> None:
    model = moved(network())
    batch = torch.zeros(12, 1, 8, 8, device=GPU)
    optimizer = ConnectionStrengthFused(
        model.parameters(), connections=find_connections(model), num_tasks=3, total_steps=2 * STEPS
    )
    steps(mode, lambda: optimizer.step(lambda task: model(batch, task).square().mean()))


def of_harmony(mode: NoMemory, **options: Any) -> None:
    dtype = options.pop("dtype", torch.float32)
    model = moved(make_model().to(dtype))
    batch = torch.zeros(16, 7, dtype=dtype, device=GPU)
    optimizer = HarmonyFused(model.named_parameters(), num_tasks=2, **options)
    steps(mode, lambda: optimizer.step(lambda task: model(batch)[:, task].square().mean()))


RULES: dict[str, dict[str, Any]] = {
    "no transfer": {"transfer": None},
    "Hat": {"transfer": Hat(every=2)},
    "Spectral": {"transfer": Spectral(every=2)},
    "Spectral, relative": {"transfer": Spectral(every=1, relative=True)},
    "CrossLearning": {"transfer": CrossLearning(0.1, iterations=1)},
    "CrossLearning of each tensor, moments": {
        "transfer": CrossLearning([0.1] * 4, iterations=1),
        "moments": Moments.MIX,
    },
    "DistanceDecrease, moments": {"transfer": DistanceDecrease(), "moments": Moments.MIX_SQUARED},
    "GumbelPrior": {"transfer": GumbelPrior(every=2)},
    "Mean, lr on the host": {"transfer": Mean(WithLearningRate(0.2)), "lr": torch.tensor(1e-3)},
    "Neighbours, moments": {"transfer": Neighbours(0.2, 0.3), "moments": Moments.MIX},
    "weighting": {"weighting": "upgrad"},
    "vertices": {"front": "vertices", "concentration": 2.0},
    "vertices, weighting of points": {
        "front": "vertices",
        "scalarization": None,
        "weighting": PaMaL(balancing="both", regularization=0.1),
    },
    "average": {"ema": 0.9},
    "vertices, average, history": {"front": "vertices", "ema": 0.9, "history": 3},
    "vertices, bfloat16": {"front": "vertices", "dtype": torch.bfloat16},
    "vertices, Log, upgrad": {"front": "vertices", "scalarization": Log(), "weighting": "upgrad"},
    "one subproblem": {"num_subproblems": 1, "preferences": [[0.5, 0.5]]},
    "PBI": {"scalarization": PBI()},
    "Log": {"scalarization": Log(), "weighting": "gls"},
    "AMSGrad": {"base": AdamW(amsgrad=True)},
    "bfloat16": {"dtype": torch.bfloat16},
}

CASES: dict[str, Callable[[NoMemory], None]] = {
    **{f"WeightedFused, {name}": lambda mode, name=name: of_weighted(mode, name) for name in WEIGHTINGS},  # type: ignore[misc]
    **{f"MT2OFused, {name}": lambda mode, given=given: of_mt2o(mode, **given) for name, given in RULES.items()},  # type: ignore[misc]
    "MT2OFused of a bank": lambda mode: of_bank(mode, "rows"),
    "MT2OFused of a bank, vertices": lambda mode: of_bank(mode, "vertices"),
    "WeightedBackward": lambda mode: of_backward(mode, weighting="upgrad"),
    "WeightedBackward of what refuses": lambda mode: of_backward(mode, weighting="gradnorm"),
    "WeightedBackward without a store": lambda mode: of_backward(mode, weighting="upgrad", store=False),
    "ConnectionStrengthFused": of_connection_strength,
    "HarmonyFused": of_harmony,
    "HarmonyFused, average, norms": lambda mode: of_harmony(mode, ema=0.9, max_norm=0.1, history=3),
    "HarmonyFused, all tasks, bfloat16": lambda mode: of_harmony(mode, turns="all", dtype=torch.bfloat16),
    "HarmonyFused, all tasks, norms": lambda mode: of_harmony(mode, turns="all", max_norm=0.1, moments="hold"),
}


def bind_on_the_host(blend: Blend, device: torch.device) -> None:
    """In place of `Blend.to`: a rule may read the preferences on the host when it is bound, which nobody can here."""
    blend.preferences = blend.preferences.to(device)
    for name, value in vars(blend.rule).items():
        if isinstance(value, Tensor):
            setattr(blend.rule, name, value.to(device))


def main() -> int:
    warnings.simplefilter("ignore")
    _native.available = lambda device: True  # the operators: their fakes are enough
    Blend.to = bind_on_the_host  # type: ignore[method-assign]
    mt2o.check_equal_slices = lambda params, num_models: None  # nobody can read values, which making an optimizer may
    LateCopy._send = lambda late: None  # type: ignore[method-assign]  # pinned memory is CUDA's
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=) in two operations, which modes see
    wrong = 0
    for name, case in CASES.items():
        try:
            with NoMemory() as mode:
                case(mode)
            print(f"ok: {name}")
        except Exception as error:
            wrong += 1
            print(f"{name}: {type(error).__name__}: {str(error).splitlines()[0]}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
