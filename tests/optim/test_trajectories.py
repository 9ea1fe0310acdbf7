"""Whole optimizers on a GPU go where they go on the CPU: to the same bits, where nothing but columns is computed.

The rehearsal on a machine without a GPU: the same steps on the CPU, whose operators are the CUDA kernels in the
emulator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from support.backends import CPU, CUDA, EMULATED, Backend, each, usable
from support.optim.trajectories import BY_INNER_PRODUCTS, ELEMENT_WISE, STEPS, Scenario, Trajectory
from support.samplers import assert_within, same_numbers

Fault = Callable[[Tensor], object]
pytestmark = pytest.mark.skipif(bool(CPU.missing), reason=CPU.missing)


class Operators:
    """Stands for ``torch.ops.mt2o_ext``: hands out the operators of a library and remembers which.

    faults: by the name of an operator, what is done to its first argument after each call.
    """

    def __init__(self, library: str, faults: Mapping[str, Fault]) -> None:
        self.library, self.faults, self.used = getattr(torch.ops, library), faults, set[str]()

    def __getattr__(self, name: str) -> Any:
        self.used.add(name)
        operator = getattr(self.library, name)
        if name not in self.faults:
            return operator

        def wrong(out: Tensor, *others: Any, **options: Any) -> None:
            operator(out, *others, **options)
            self.faults[name](out)

        return wrong


def along(scenario: Scenario, backend: Backend, **faults: Fault) -> Trajectory:
    """The trajectory on this backend; it went through the operators that it is meant to test."""
    handed_out = Operators("mt2o_ext_emulated" if backend is EMULATED else "mt2o_ext", faults)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.ops, "mt2o_ext", handed_out)
        trajectory = scenario.on(backend.device)
    assert handed_out.used >= scenario.operators
    assert len(trajectory.points) == STEPS + 1 and moved(trajectory)
    return trajectory


def moved(trajectory: Trajectory) -> bool:
    """True if every tensor did (what is rounded to 16 bits may be where it was)."""
    first, last = trajectory.points[0], trajectory.points[-1]
    return all(
        bool((first[name] != value).any())
        for name, value in last.items()
        if name.startswith("buffer") and value.dtype == torch.float32
    )


def assert_same(actual: Trajectory, expected: Trajectory) -> None:
    """Parameters after each step, and all of the state at the end."""
    named = [*enumerate(zip(actual.points, expected.points, strict=True)), ("end", (actual.state, expected.state))]
    for step, (ours, theirs) in named:
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            differ = int((ours[name] != value).sum())
            assert same_numbers(ours[name], value), f"step {step}, {name}: {differ} of {value.numel()} differ"


def assert_near(actual: Trajectory, expected: Trajectory, *, rounded_gradient: bool = False) -> None:
    """Sums in another order are products good to 1e-7 of the rows' lengths, and weights or a mix of them as good but
    for the condition of a small problem, here below ten: so far apart, of the way that was gone, may the ends be.
    Every step rounds once more to float32; what was rounded to 16 bits is as near as they allow.  WeightedFused rounds
    the combined gradient of 16-bit parameters to ``.grad``: of the few elements that lie between two numbers some go
    the other way in a step or two.
    """
    start = before = expected.points[0]
    turned = torch.finfo(torch.bfloat16).eps if rounded_gradient else 0.0
    longest = dict.fromkeys(start, torch.zeros((), dtype=torch.float64))
    size = {tensor: torch.zeros_like(value, dtype=torch.float64) for tensor, value in start.items()}
    for step, (ours, theirs) in enumerate(zip(actual.points, expected.points, strict=True)):
        assert ours.keys() == theirs.keys() and torch.equal(ours["scale"], theirs["scale"])
        for tensor, value in theirs.items():
            way = (value.double() - start[tensor].double()).abs().max()
            size[tensor] = torch.maximum(size[tensor], value.double().abs())  # that was rounded so far
            shown = torch.finfo(value.dtype).eps if value.dtype == torch.bfloat16 else 0.0
            allowed = 1e-6 * way + (shown + step * 2.0**-23) * size[tensor]
            longest[tensor] = torch.maximum(longest[tensor], (value.double() - before[tensor].double()).abs().max())
            beyond = (ours[tensor].double() - value.double()).abs() > allowed
            if float(beyond.double().mean()) > 0.002 * (turned > 0):
                assert_within(ours[tensor], value, allowed)
            assert_within(ours[tensor], value, allowed + 2 * turned * longest[tensor])
        before = theirs


@pytest.fixture(params=each(CUDA, EMULATED))
def other(request: pytest.FixtureRequest) -> Backend:
    return usable(request.param)


@pytest.mark.parametrize("name", ELEMENT_WISE)
def test_column_by_column_the_same_bits(other: Backend, name: str) -> None:
    assert_same(along(ELEMENT_WISE[name], other), along(ELEMENT_WISE[name], CPU))


@pytest.mark.parametrize("name", BY_INNER_PRODUCTS)
def test_by_inner_products_the_same_way_but_for_roundings(other: Backend, name: str) -> None:
    assert_near(
        along(BY_INNER_PRODUCTS[name], other),
        along(BY_INNER_PRODUCTS[name], CPU),
        rounded_gradient=name.startswith("WeightedFused") and "bfloat16" in name,
    )


# ---------------------------------------------------------------------- that these comparisons see
def one_place(tensor: Tensor) -> None:
    """The next number in the place of the first."""
    first = tensor.view(-1)[:1]
    first.copy_(torch.nextafter(first, torch.full_like(first, torch.inf)))


@pytest.mark.parametrize("name", ELEMENT_WISE)
def test_another_bit_is_seen(name: str) -> None:
    faults = dict.fromkeys(ELEMENT_WISE[name].operators - {"finite_", "priority_", "harmony_", "exchange_"}, one_place)
    right, wrong = along(ELEMENT_WISE[name], CPU), along(ELEMENT_WISE[name], CPU, **faults)
    assert_same(along(ELEMENT_WISE[name], CPU), right)
    with pytest.raises(AssertionError, match=r"step [01], .*: 1 of \d+ differ"):
        assert_same(wrong, right)


@pytest.mark.parametrize("name", BY_INNER_PRODUCTS)
def test_inner_products_that_are_a_little_wrong_are_seen(name: str) -> None:
    """One of them by one in a thousand."""
    right = along(BY_INNER_PRODUCTS[name], CPU)
    wrong = along(BY_INNER_PRODUCTS[name], CPU, gram_=lambda gram: gram[..., 0, 0].mul_(1.001))
    with pytest.raises(AssertionError, match=r"\d+ of \d+ differ"):
        assert_near(wrong, right, rounded_gradient=name.startswith("WeightedFused") and "bfloat16" in name)
