"""The same numbers through the emulator, the GPU (twice) and the CPU's kernels, compared as bits; JSON.

python -m tools.gpu_check.bits FILE [--dry-run]

Emulated and real CUDA must agree everywhere.  CUDA and CPU must agree in the families that go column by column or
problem by problem; where sums are taken in another order (gram, priority) what differs is recorded.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mt2o_ext.ops import Order, PriorityRecord, Rule, plan_priority, workspace_size
from tools.gpu_check.runner import ROOT

sys.path.insert(0, str(ROOT / "tests"))
from emulator import library
from samplers import FLOATS, HALVES, Layout, Sampler, StepProblem, same_bits

IN_ONE_ORDER = {"combine", "transfer", "step", "finite", "solve"}
LAYOUT = Layout((5000, 1, 0, 2049, 33))


@dataclass(frozen=True)
class Backend:
    """Compiled operators, on the device whose tensors they take."""

    name: str
    device: torch.device
    operators: Any  # combine_, gram_, ...


@dataclass
class Call:
    """One operator with its arguments, on the CPU."""

    family: str
    what: str
    arguments: list[Tensor | None]
    options: dict[str, Any] = field(default_factory=dict)
    operator: str = ""  # "": that of the family

    def after(self, backend: Backend) -> list[Tensor]:
        """All tensors after the call, on the CPU; those of the call stay as they are."""
        copies = [None if a is None else a.to(backend.device, copy=True) for a in self.arguments]
        getattr(backend.operators, self.operator or f"{self.family}_")(*copies, **self.options)
        return [copy.cpu() for copy in copies if copy is not None]


def combines(sampler: Sampler, dtype: torch.dtype) -> Iterator[Call]:
    for rows, tasks in ((1, 1), (5, 3), (17, 8)):
        out, grads = sampler.poisoned(rows, dtype=dtype), sampler.rows(rows, tasks, dtype=dtype)
        yield Call("combine", f"{dtype} {rows}x{tasks}", [out, grads, sampler.weights(rows, tasks), LAYOUT.chunks])


def grams(sampler: Sampler, dtype: torch.dtype) -> Iterator[Call]:
    for rows, centre, cross, diagonal in itertools.product((2, 3, 8, 16), *3 * ((False, True),)):
        products = rows if diagonal else rows * rows if cross else rows * (rows + 1) // 2
        shape = (rows,) if diagonal else (rows, rows)
        out = torch.full((2, len(LAYOUT.numels), *shape), torch.nan, dtype=torch.float64)
        partials = torch.full((2, len(LAYOUT.chunks), products), torch.nan, dtype=torch.float64)
        matrix, others = sampler.rows(2, rows, dtype=dtype), sampler.rows(2, rows, dtype=dtype) if cross else None
        what = f"{dtype} {rows} rows{', centred' * centre}{', cross' * cross}{', diagonal' * diagonal}"
        arguments = [out, partials, matrix, others, LAYOUT.chunks]
        yield Call("gram", what, arguments, {"centre": centre, "diagonal": diagonal})


def finites(sampler: Sampler, dtype: torch.dtype) -> Iterator[Call]:
    grads = sampler.rows(5, 3, dtype=dtype)
    grads[3, 1, LAYOUT.chunks[-1, 2] - 1], grads[1, 0, 0] = torch.nan, torch.inf
    yield Call("finite", f"{dtype}", [torch.zeros(5), grads, LAYOUT.chunks])


def transfers(sampler: Sampler, dtype: torch.dtype) -> Iterator[Call]:
    for shape in ((2, 2), (5, 5), (17, 17), (len(LAYOUT.numels), 6, 6)):
        mix = sampler.mix(*shape, density=0.7, identity_rows=(1,))
        yield Call("transfer", f"{dtype} {list(shape)}", [sampler.rows(shape[-1], dtype=dtype), mix, LAYOUT.chunks])


def steps(sampler: Sampler, theta: torch.dtype, grads: torch.dtype) -> Iterator[Call]:
    for rule in Rule:
        for order in Order:
            for rows, tasks in ((1, 1), (5, 2), (17, 3)):
                problem = StepProblem.sample(
                    sampler, rows, tasks, rule, theta_dtype=theta, grads_dtype=grads,
                    mix=sampler.mix(rows, rows) if rows > 1 else None, ema=sampler.rows(rows, dtype=theta),
                    low_precision=sampler.poisoned(rows, dtype=grads) if grads in HALVES else None,
                    grad_scale=torch.tensor([8.0]), found_inf=torch.zeros(rows),
                )  # fmt: skip
                what = f"{theta} {grads} {rule.name} {order.name} {rows}x{tasks}"
                yield Call("step", what, problem.arguments(), {"rule": int(rule), "order": int(order)})


def priorities(sampler: Sampler, dtype: torch.dtype) -> Iterator[Call]:
    """Layers of two channels, and of channels of one column; the last tensor belongs to none."""
    records, num_channels = [], 0
    for layer, (offset, numel) in enumerate(zip(LAYOUT.offsets, LAYOUT.numels, strict=True)):
        if numel == 0:
            continue
        channels = 2 if numel % 2 == 0 else numel
        records.append(PriorityRecord(layer, num_channels, channels, offset, numel // channels, 1))
        num_channels += channels
    records[-1] = records[-1]._replace(layer=-1)
    tables = plan_priority(records)
    for tasks in (2, 6):
        owners = torch.arange(num_channels) % (tasks + 1) - 1
        out, grads = sampler.poisoned(dtype=dtype), sampler.rows(tasks, dtype=dtype)
        dots = torch.zeros(len(tables[1]), tasks, tasks, dtype=torch.float64)
        coefficients = torch.full((len(LAYOUT.numels), tasks), torch.nan, dtype=torch.float64)
        yield Call("priority", f"{dtype} {tasks} tasks", [out, dots, coefficients, grads, owners, *tables])


def solves(sampler: Sampler) -> Iterator[Call]:
    """Every solver on four problems at once."""
    for tasks in (2, 3, 8):
        rows = sampler.normal(4, tasks, tasks + 2)
        rows[..., 0] -= 1.0  # conflicts
        gram, ones = rows @ rows.mT, torch.ones(4, tasks, dtype=torch.float64)
        losses = torch.arange(1.0, tasks + 1, dtype=torch.float64).repeat(4, 1)
        order = sampler.uniform(4, tasks, tasks).argsort(-1)
        weights, many = torch.full_like(ones, torch.nan), torch.full_like(gram, torch.nan)
        problems = [torch.zeros(4, workspace_size(tasks), dtype=torch.float64), gram]
        given: list[tuple[str, list[Tensor | None], dict[str, Any]]] = [
            ("minimum_norm_", [weights, *problems, None], {}),
            ("conflict_averse_", [weights, *problems, ones / tasks], {"radius": 0.5, "rtol": 1e-12}),
            ("power_barrier_", [weights, torch.zeros(4, dtype=torch.float64), *problems, ones], {"power": 0.3}),
            ("dual_cone_", [many, *problems, torch.diag_embed(ones)], {}),
            ("eigen_", [weights, many, *problems], {}),
            ("project_", [weights, torch.full_like(gram, 0.3), *problems, order], {"decay": 0.1}),
            ("descent_", [weights, *problems, losses, ones], {"tolerance": 1e-4, "relax": False}),
        ]
        for operator, arguments, options in given:
            yield Call("solve", f"{operator} {tasks} tasks", arguments, options, operator)


def calls() -> Iterator[Call]:
    return (call for call in all_calls() if call.family in families())


def all_calls() -> Iterator[Call]:
    sampler = Sampler(LAYOUT, seed=11)
    for dtype in FLOATS + HALVES:
        yield from combines(sampler, dtype)
        yield from grams(sampler, dtype)
        yield from finites(sampler, dtype)
        yield from steps(sampler, torch.float64 if dtype == torch.float64 else torch.float32, dtype)
    for dtype in FLOATS:
        yield from transfers(sampler, dtype)
    for dtype in FLOATS + HALVES:
        yield from priorities(sampler, dtype)
    yield from solves(sampler)


def difference(actual: list[Tensor], expected: list[Tensor]) -> dict[str, Any] | None:
    """How many numbers differ, and by how much at most; None if not one bit does."""
    pairs = [(a, e) for a, e in zip(actual, expected, strict=True) if not same_bits(a, e)]
    if not pairs:
        return None
    wrong = [(a != e) & ~(a.isnan() & e.isnan()) for a, e in pairs]
    largest = max(float((a.double() - e.double()).abs().nan_to_num(nan=0).max()) for a, e in pairs)
    return {"numbers": sum(int(w.sum()) for w in wrong), "largest": largest}


def compare(subject: Backend, emulated: Backend, cpu: Backend) -> dict[str, Any]:
    """What differs of ``subject`` from each other backend, by case; "must agree" names those that may not."""
    result: dict[str, Any] = {"cases": 0, "must agree": [], "differ": {}}
    for call in calls():
        result["cases"] += 1
        actual = call.after(subject)
        others = {"itself": subject, emulated.name: emulated, cpu.name: cpu}
        for name, other in others.items():
            if found := difference(actual, call.after(other)):
                case = f"{call.family} {call.what}: {subject.name} and {name}"
                result["differ"][case] = found
                if other is not cpu or call.family in IN_ONE_ORDER:
                    result["must agree"].append(case)
    return result


def families() -> set[str]:
    """Those that have CUDA kernels."""
    declared = (ROOT / "csrc" / "cuda" / "kernels.h").read_text()
    return set(re.findall(r"^Problem (\w+)\(", declared, flags=re.MULTILINE))


def main() -> int:
    path, dry = Path(sys.argv[1]), "--dry-run" in sys.argv[2:]
    library.load()
    cpu = Backend("cpu", torch.device("cpu"), torch.ops.mt2o_ext)
    emulated = Backend("cuda-emulated", torch.device("cpu"), torch.ops.mt2o_ext_emulated)
    cuda = Backend("cuda", torch.device("cuda"), torch.ops.mt2o_ext)
    result = compare(emulated if dry else cuda, emulated, cpu)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{result['cases']} cases, {len(result['differ'])} differ, {len(result['must agree'])} of them must not:")
    print("\n".join(result["must agree"]))
    return 1 if result["must agree"] else 0


if __name__ == "__main__":
    sys.exit(main())
