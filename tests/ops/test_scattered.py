"""Gradients that lie anywhere, behind a table of addresses: the results have the bits of those of one buffer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mt2o_ext import ops
from mt2o_ext.ops import NO_GRADIENT, Order, Rule, address_table, can_read_addresses
from support.backends import CPU, Backend
from support.ops.gram_oracle import run as gram
from support.ops.scattered import Scattered, scattered, with_zeros
from support.samplers import FLOATS, HALVES, LAYOUTS, Layout, Sampler, StepProblem, same_bits

# Each size of the CUDA kernels' shared memory, and each number of tasks.
ROWS_AND_TASKS = ((1, 1), (5, 2), (17, 3), (4, 8), (16, 1))
# (backend, layout, gradients [K, T, P], their addresses) -> results
Run = Callable[[Backend, Layout, Tensor, Tensor | None], list[Tensor]]


def combined(backend: Backend, layout: Layout, grads: Tensor, addresses: Tensor | None) -> list[Tensor]:
    sampler = Sampler(layout, seed=1)
    rows, tasks, _ = grads.shape
    results = []
    for dtype in {grads.dtype, torch.float64 if grads.dtype == torch.float64 else torch.float32}:
        out = sampler.poisoned(rows, dtype=dtype)
        backend.combine_(out, grads, sampler.weights(rows, tasks), layout.chunks, addresses)
        results.append(out)
    return results


def grams(backend: Backend, layout: Layout, grads: Tensor, addresses: Tensor | None) -> list[Tensor]:
    return [gram(backend, grads, layout, diagonal=diagonal, addresses=addresses) for diagonal in (False, True)]


def found(backend: Backend, layout: Layout, grads: Tensor, addresses: Tensor | None) -> list[Tensor]:
    flags = torch.zeros(len(grads))
    backend.finite_(flags, grads, layout.chunks, addresses)
    return [flags]


def stepped(backend: Backend, layout: Layout, grads: Tensor, addresses: Tensor | None) -> list[Tensor]:
    """Without a mix and with one, in both orders."""
    rows, tasks, _ = grads.shape
    theta = torch.float64 if grads.dtype == torch.float64 else torch.float32
    results: list[Tensor] = []
    for rule, order, mixed in (
        (Rule.SGD, Order.CONSENSUS, False),
        (Rule.ADAM, Order.CONSENSUS, True),
        (Rule.AMSGRAD, Order.ADAPT_THEN_COMBINE, True),
        (Rule.MOMENTUM, Order.CONSENSUS, True),
    ):
        sampler = Sampler(layout, seed=2)
        mix = sampler.mix(rows, rows, density=0.6) if mixed else None
        problem = StepProblem.sample(sampler, rows, tasks, rule, theta_dtype=theta, mix=mix)
        after = replace(problem, grads=grads, addresses=addresses).run(backend, rule, order)
        results += [value for name, value in after.tensors().items() if name not in ("grads", "addresses")]
    return results


FAMILIES: dict[str, Run] = {"combine": combined, "gram": grams, "finite": found, "step": stepped}
EACH_FAMILY = pytest.mark.parametrize("family", FAMILIES)


def assert_same(
    backend: Backend, family: str, layout: Layout, grads: Tensor, missing: Tensor | None = None
) -> Scattered:
    apart = scattered(grads, layout, missing, backend.device)
    buffer = grads if missing is None else with_zeros(grads, layout, missing)
    run = FAMILIES[family]
    pairs = zip(run(backend, layout, buffer, None), run(backend, layout, apart.like, apart.addresses), strict=True)
    for index, (together, scattered_) in enumerate(pairs):
        assert layout.same_results(together, scattered_), f"result {index} of {family}"
    return apart


@EACH_FAMILY
@pytest.mark.parametrize("dtype", FLOATS + HALVES, ids=str)
@pytest.mark.parametrize("numels", LAYOUTS, ids=str)
def test_the_bits_of_one_buffer(backend: Backend, numels: tuple[int, ...], dtype: torch.dtype, family: str) -> None:
    layout = Layout(numels)
    for rows, tasks in ROWS_AND_TASKS:
        assert_same(backend, family, layout, Sampler(layout).rows(rows, tasks, dtype=dtype))


@EACH_FAMILY
@pytest.mark.parametrize("dtype", FLOATS + HALVES, ids=str)
def test_a_gradient_that_is_missing_counts_as_zeros(backend: Backend, dtype: torch.dtype, family: str) -> None:
    """Any of them; all of a task, of a tensor, of everything."""
    layout = Layout((3, 17, 4097, 0, 20))
    sampler = Sampler(layout)
    for rows, tasks in ((1, 1), (2, 3), (3, 8)):
        missing = sampler.uniform(rows, tasks, 5) < 0.5
        missing[:, 0, 1] = missing[0, :, 4] = missing[-1, -1] = True
        grads = sampler.rows(rows, tasks, dtype=dtype)
        assert_same(backend, family, layout, grads, missing)
        assert_same(backend, family, layout, grads, torch.ones_like(missing))


@EACH_FAMILY
def test_numbers_that_are_not_finite_beside_missing_gradients(backend: Backend, family: str) -> None:
    layout = Layout((40, 3000))
    sampler = Sampler(layout)
    grads = sampler.rows(2, 5)
    grads[0, 1, 39], grads[1, 2, layout.offsets[1] + 2999] = torch.inf, torch.nan
    missing = torch.zeros(2, 5, 2, dtype=torch.bool)
    missing[0, 0, 0] = missing[1, 4, 1] = True
    assert_same(backend, family, layout, grads, missing)


@EACH_FAMILY
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_any_layout(backend: Backend, family: str, data: st.DataObject) -> None:
    layout = Layout(data.draw(st.lists(st.integers(0, 5000), min_size=1, max_size=6), label="numels"))
    rows, tasks = data.draw(st.integers(1, 5), label="rows"), data.draw(st.integers(1, 9), label="tasks")
    sampler = Sampler(layout, seed=data.draw(st.integers(0, 9), label="seed"))
    missing = sampler.uniform(rows, tasks, len(layout.numels)) < 0.3
    assert_same(backend, family, layout, sampler.rows(rows, tasks), missing)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_squares_out_of_range(backend: Backend, scale: float) -> None:
    """Rows that are divided by a power of two are divided elsewhere: the gradients cannot be written to."""
    layout = Layout((3000, 17))
    grads = Sampler(layout).rows(2, 7)
    grads[:, 3] *= scale
    assert_same(backend, "gram", layout, grads)


@EACH_FAMILY
def test_a_part_of_a_table(backend: Backend, family: str) -> None:
    """The first tasks; one row for all subproblems."""
    layout = Layout((50, 3000))
    grads = Sampler(layout).rows(3, 4)
    apart = scattered(grads, layout, device=backend.device)
    run = FAMILIES[family]
    for some, part in (
        (grads[:, :2].contiguous(), (slice(None), slice(0, 2))),
        (grads[1:2].expand(3, 4, -1), (torch.tensor([1, 1, 1]), slice(None))),
    ):
        addresses = apart.addresses[part] if some.shape[1] == 2 else apart.addresses[1:2].expand(3, -1, -1)
        like = apart.like[:, : some.shape[1]]
        for together, other in zip(
            run(backend, layout, some, None), run(backend, layout, like, addresses), strict=True
        ):
            assert layout.same_results(together, other)


def test_gradients_that_autograd_made(backend: Backend) -> None:
    """Two backwards, whose gradients autograd hands over as they are; a bias that only one of the losses reaches."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(7, 33), torch.nn.Tanh(), torch.nn.Linear(33, 3, bias=False))
    extra = torch.nn.Parameter(torch.randn(3))
    parameters = [*model.parameters(), extra]
    outputs = model(torch.randn(5, 7))
    losses = [outputs.square().mean(), (outputs * extra).sum()]
    gradients = [torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True) for loss in losses]
    assert gradients[0][-1] is None
    layout = Layout([p.numel() for p in parameters])
    buffer = torch.zeros(1, 2, layout.row)
    for task, of_task in enumerate(gradients):
        for offset, gradient in zip(layout.offsets, of_task, strict=True):
            if gradient is not None:
                buffer[0, task, offset : offset + gradient.numel()] = gradient.flatten()
    there = [[None if g is None else g.to(backend.device) for g in of_task] for of_task in gradients]
    addresses = address_table([there], layout.offsets)
    like = torch.empty(1).expand(buffer.shape)
    for run in FAMILIES.values():
        for together, apart in zip(
            run(backend, layout, buffer, None), run(backend, layout, like, addresses), strict=True
        ):
            assert layout.same_results(together, apart)


def test_what_a_table_says() -> None:
    first, second = torch.zeros(5, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    table = address_table([[[None, second]], [[first, None]]], [0, 16])
    assert table.dtype == torch.int64
    assert table.tolist() == [[[NO_GRADIENT, second.data_ptr() - 128]], [[first.data_ptr(), NO_GRADIENT]]]
    assert address_table([[[], []]], []).shape == (1, 2, 0)
    with pytest.raises(ValueError, match="expected addresses of"):
        address_table([[[first]]], [0, 16])


def test_a_table_for_a_gpu_refuses_what_its_kernels_could_not() -> None:
    memory = torch.zeros(9)
    with pytest.raises(ValueError, match="begin at multiples of 16 bytes: copy"):
        address_table([[[memory[1:], None]]], [0, 16], torch.device("cuda"))


def test_who_can_read_addresses() -> None:
    assert can_read_addresses(torch.device("cpu"))
    assert not can_read_addresses(torch.device("meta"))
    answers = []
    traced = torch.compile(
        lambda x: (answers.append(can_read_addresses(x.device)), x + 1)[1], backend="eager", fullgraph=False
    )
    traced(torch.zeros(1))
    assert answers == [False]


@pytest.mark.skipif(bool(CPU.missing), reason=CPU.missing)
@EACH_FAMILY
def test_an_address_between_multiples_of_sixteen_bytes_is_refused(family: str) -> None:
    layout = Layout((40, 3000))
    apart = scattered(Sampler(layout).rows(2, 2), layout)
    addresses = apart.addresses.clone()
    addresses[1, 0, 1] += 4
    with pytest.raises(RuntimeError, match=r"behind addresses\[1, 0, 1\] must begin at a multiple of 16 bytes: take"):
        FAMILIES[family](CPU, layout, apart.like, addresses)


@pytest.mark.skipif(bool(CPU.missing), reason=CPU.missing)
@pytest.mark.parametrize("option", ["centre", "others"])
def test_what_is_read_by_addresses_is_neither_centred_nor_crossed(backend: Backend, option: str) -> None:
    layout = Layout((40,))
    grads = Sampler(layout).rows(1, 2)
    apart = scattered(grads, layout, device=backend.device)
    with pytest.raises(RuntimeError, match="neither centred nor multiplied with others"):
        gram(backend, apart.like, layout, grads if option == "others" else None, centre=option == "centre",
             addresses=apart.addresses)  # fmt: skip


def test_the_reference_cannot_read_the_memory_of_another_device() -> None:
    meta = torch.empty(1, 1, 16, device="meta")
    with pytest.raises(RuntimeError, match="expected gradients in a buffer for the reference on meta"):
        ops.reference.finite_(torch.zeros(1), meta, torch.tensor([[0, 0, 16]]), torch.ones(1, 1, 1))


@pytest.mark.skipif(bool(CPU.missing), reason=CPU.missing)
def test_the_functions_for_users_pass_addresses_on() -> None:
    layout = Layout((40, 3000))
    grads = Sampler(layout).rows(2, 3)
    apart = scattered(grads, layout)
    for run in FAMILIES.values():
        for together, other in zip(
            run(ops, layout, grads, None), run(ops, layout, apart.like, apart.addresses), strict=True
        ):
            assert same_bits(together, other)
