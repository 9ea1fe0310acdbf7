"""The same bits for any number of threads, run and instruction set.  As a script: prints a hash of all results."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mt2o_ext import _native
from mt2o_ext.ops import EXCHANGE_BINS, EXCHANGE_STATE, Order, Rule
from support.backends import CPU
from support.ops.priority_problem import PriorityProblem
from support.samplers import FLOATS, HALVES, Layout, Sampler, StepProblem

pytestmark = pytest.mark.skipif(bool(CPU.missing), reason=CPU.missing)
ISAS = ("default", "avx2", "avx512")


def elements(sampler: Sampler, dtype: torch.dtype) -> Iterator[Tensor]:
    layout, wide = sampler.layout, torch.float64 if dtype == torch.float64 else torch.float32
    finite = torch.tensor([True, False, True])
    grads, memory, last = sampler.rows(3, 4, dtype=dtype), sampler.rows(3, 4, dtype=wide), sampler.rows(3, dtype=wide)
    CPU.track_(grads, memory, sampler.weights(3, 4), sampler.weights(3, 4), finite, layout.chunks, shown=True)
    yield from (grads.clone(), memory.clone())
    now, before = sampler.uniform(3), sampler.uniform(3)
    CPU.feed_(grads, last, memory, sampler.weights(3, 4), now, before, finite, layout.chunks, beta=0.9)
    yield from (grads, last)
    grads, squares = sampler.rows(3, 4, dtype=dtype), sampler.positive_rows(3, 4, dtype=wide)
    out = torch.zeros(3, len(layout.numels), 4, dtype=torch.float64)
    partials = torch.zeros(3, len(layout.chunks), 4, dtype=torch.float64)
    CPU.excess_(out, partials, squares, grads, finite, layout.chunks)
    yield from (out, squares)
    CPU.drop_signs_(grads, torch.tensor(17), finite, layout.chunks, stream=2, leak=0.3)
    yield grads


def results() -> Iterator[Tensor]:
    """Every kernel on every type, on tensors with tails and more chunks than threads."""
    layout = Layout((9000, 1, 4097, 33))
    sampler = Sampler(layout, seed=7)
    for dtype in FLOATS + HALVES:
        grads = sampler.rows(5, 3, dtype=dtype)
        out = sampler.poisoned(5, dtype=dtype)
        CPU.combine_(out, grads, sampler.weights(5, 3), layout.chunks)
        yield out
        yield from grams(sampler, dtype)
        for tasks in (2, 3, 7):
            problem = PriorityProblem.sample(tasks, dtype=dtype)
            yield problem.run(CPU)
            yield problem.coefficients
        grads[3, 1, 9008] = torch.nan
        found = torch.zeros(5)
        CPU.finite_(found, grads, layout.chunks)
        yield found
        yield from elements(sampler, dtype)
    for dtype in FLOATS:
        theta = sampler.rows(6, dtype=dtype)
        CPU.transfer_(theta, sampler.mix(6, 6, density=0.7), layout.chunks)
        yield theta
    for rule in Rule:
        for order in Order:
            for theta_dtype, grads_dtype, low in (
                (torch.float64, torch.float64, None),
                (torch.float32, torch.float32, torch.bfloat16),
                (torch.float32, torch.float16, torch.float16),
            ):
                problem = StepProblem.sample(
                    sampler, 5, 2, rule, theta_dtype=theta_dtype, grads_dtype=grads_dtype, mix=sampler.mix(5, 5),
                    ema=sampler.rows(5, dtype=theta_dtype),
                    low_precision=None if low is None else sampler.poisoned(5, dtype=low),
                )  # fmt: skip
                yield from problem.run(CPU, rule, order).tensors().values()
                masked = replace(problem, mix=None, masks=sampler.masks(2), whole=torch.arange(4) == 2)
                yield from masked.run(CPU, rule, hold=order == Order.CONSENSUS).tensors().values()
    yield from of_masks(sampler)


def of_masks(sampler: Sampler) -> Iterator[Tensor]:
    """Views, scores, and bits that change places."""
    layout, whole = sampler.layout, torch.arange(4) == 2
    for dtype in FLOATS + HALVES:
        values, out = sampler.rows(1, dtype=dtype), sampler.poisoned(1, dtype=dtype)
        CPU.mask_(out, values, sampler.masks(1), whole, layout.chunks)
        yield out
        for magnitude in (False, True):
            masks, scores, factors = sampler.masks(3), sampler.poisoned(3), sampler.uniform(3)
            options = {"gamma": 3.0, "magnitude": magnitude, "dense": not magnitude}
            CPU.harmony_(
                scores, sampler.rows(1, 3, dtype=dtype), values, factors, masks, whole, layout.chunks, **options
            )
            yield scores
            counts = torch.zeros(3, len(layout.chunks), EXCHANGE_BINS, dtype=torch.int32)
            state = torch.zeros(3, EXCHANGE_STATE, dtype=torch.int64)
            CPU.exchange_(masks, counts, state, scores, layout.chunks, amount=500)
            yield masks


def grams(sampler: Sampler, dtype: torch.dtype) -> Iterator[Tensor]:
    """All kinds of inner products, with rows out of range among the others (of float16: at the ends of its range)."""
    layout = sampler.layout
    for num_rows in (2, 5, 7, 17):
        rows, others = (sampler.rows(1, num_rows, dtype=dtype) for _ in range(2))
        rows[:, -1] *= 1e-5 if dtype == torch.float16 else 1e-30
        others[:, 0] *= 1e4 if dtype == torch.float16 else 1e30
        for centre in (False, True):
            for y, diagonal in ((None, False), (others, False), (None, True), (others, True)):
                sums = num_rows if diagonal else num_rows * (num_rows + 1) // 2 if y is None else num_rows**2
                out = torch.empty(1, 4, *((num_rows,) if diagonal else (num_rows, num_rows)), dtype=torch.float64)
                partials = torch.empty(1, len(layout.chunks), sums, dtype=torch.float64)
                CPU.gram_(out, partials, rows, y, layout.chunks, centre=centre, diagonal=diagonal)
                yield out


def digest() -> str:
    total = hashlib.sha256()
    for result in results():
        total.update(result.contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


@pytest.fixture(scope="module")
def here() -> str:
    return digest()


def test_runs(here: str) -> None:
    assert digest() == here


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads(here: str, threads: int) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert digest() == here
    finally:
        torch.set_num_threads(before)


def run_with_isa(isa: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "MT2O_CPU_ISA": isa, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run([sys.executable, __file__], capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize("isa", ISAS)
def test_instruction_sets(here: str, isa: str) -> None:
    supported = _native.C.supported_isas()
    if isa not in supported:
        pytest.skip(f"this processor has {', '.join(supported)}, not {isa}")
    process = run_with_isa(isa)
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == [isa, here]


def test_an_unknown_instruction_set_is_a_clear_error() -> None:
    process = run_with_isa("nonsense")
    assert process.returncode != 0
    expected = "expected an instruction set of this processor: " + ", ".join(_native.C.supported_isas())
    assert process.stderr.splitlines()[-1] == f"RuntimeError: MT2O_CPU_ISA=nonsense: {expected}"


if __name__ == "__main__":
    result = digest()  # first, so that an operator meets a wrong MT2O_CPU_ISA
    print(_native.C.cpu_isa(), result)
