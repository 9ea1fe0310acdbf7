from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mt2o_ext.ops import MOMENTS, Order, Rule
from support.backends import Backend
from support.ops.step_bounds import step_bounds
from support.plain_lion import PlainLion
from support.samplers import (
    FLOATS,
    HALVES,
    LAYOUTS,
    ROWS,
    Layout,
    Sampler,
    StepProblem,
    assert_within,
    rows_and_tasks,
    same_bits,
)

MATRICES = ("theta", *MOMENTS, "ema")
RULES = pytest.mark.parametrize("rule", Rule, ids=lambda rule: rule.name.lower())
ORDERS = pytest.mark.parametrize("order", Order, ids=lambda order: order.name.lower())
DTYPES = [(dtype, dtype) for dtype in FLOATS] + [(torch.float32, dtype) for dtype in HALVES]


def check(
    backend: Backend, problem: StepProblem, layout: Layout, rule: Rule, order: Order = Order.CONSENSUS
) -> StepProblem:
    """Runs a step, compares everything with the oracle, and returns the result."""
    after, expected = problem.run(backend, rule, order), problem.oracle(rule, order)
    bounds = step_bounds(problem, expected, layout.segment_of, rule, order)
    assert torch.equal(after.step, expected.step)
    for name in MATRICES:
        if getattr(problem, name) is None:
            continue
        actual, allowed = getattr(after, name), getattr(bounds, name)
        assert_within(actual[:, layout.inside], getattr(expected, name)[:, layout.inside], allowed[:, layout.inside])
        assert layout.padding_kept(actual)
    if problem.low_precision is not None:
        check_rounded(problem, after, layout)
    for name in ("grads", "weights", "mix", "segments", "chunks", "active", "grad_scale", "found_inf"):
        if getattr(problem, name) is not None and problem.chunks.numel() > 0:
            before, now = (getattr(p, name) for p in (problem, after))
            assert now.equal(before) or same_bits(now, before)
    return after


def check_rounded(problem: StepProblem, after: StepProblem, layout: Layout) -> None:
    """What took part is theta rounded as torch rounds, bit for bit; the rest is as it was."""
    stepped = (after.step != problem.step)[:, layout.segment_of] & layout.inside
    rounded = after.theta.to(after.low_precision.dtype)
    assert same_bits(after.low_precision, torch.where(stepped, rounded, problem.low_precision))


def sampled(sampler: Sampler, rows: int, tasks: int, rule: Rule, **options: object) -> StepProblem:
    return StepProblem.sample(sampler, rows, tasks, rule, **options)


@RULES
@pytest.mark.parametrize(("theta_dtype", "grads_dtype"), DTYPES, ids=str)
@pytest.mark.parametrize("numels", LAYOUTS, ids=str)
def test_equals_the_oracle(
    backend: Backend, numels: tuple[int, ...], theta_dtype: torch.dtype, grads_dtype: torch.dtype, rule: Rule
) -> None:
    layout = Layout(numels)
    sampler = Sampler(layout)
    for i, (rows, tasks) in enumerate(rows_and_tasks(numels)):
        mix = sampler.mix(rows, rows, density=0.6) if i % 3 else None
        problem = sampled(sampler, rows, tasks, rule, theta_dtype=theta_dtype, grads_dtype=grads_dtype, mix=mix)
        check(backend, problem, layout, rule, Order(i % 2))


MIXES = {
    "none": lambda sampler: None,
    "shared": lambda sampler: sampler.mix(5, 5),
    "per segment": lambda sampler: sampler.mix(3, 5, 5),
    "sparse": lambda sampler: sampler.mix(5, 5, density=0.3),
    "some rows of the identity": lambda sampler: sampler.mix(5, 5, identity_rows=(0, 3)),
}


@RULES
@ORDERS
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("low", [None, *HALVES], ids=str)
def test_every_option_with_every_other(
    backend: Backend, rule: Rule, order: Order, mix: str, low: torch.dtype | None
) -> None:
    layout = Layout((17, 2065, 33))
    sampler = Sampler(layout)
    segments = sampler.segments(transfer=[1.0, 1.0, 0.0], ema=[0.9, 0.0, 1.0])
    active = torch.ones(5, 3, dtype=torch.bool)
    active[1, 0] = active[2, 2] = False
    for weighted in (False, True):
        for skips in (False, True):
            problem = sampled(
                sampler, 5, 2 if weighted else 1, rule, weighted=weighted, mix=MIXES[mix](sampler), segments=segments,
                ema=sampler.rows(5) if skips or low else None,
                low_precision=None if low is None else sampler.poisoned(5, dtype=low),
                active=active if skips else None,
                grad_scale=torch.tensor([1024.0]) if skips else None,
                found_inf=torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0]) if skips else None,
            )  # fmt: skip
            if low:
                problem.grads = problem.grads.to(low)
            check(backend, problem, layout, rule, order)


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_any_layout(backend: Backend, data: st.DataObject) -> None:
    layout = Layout(data.draw(st.lists(st.integers(0, 5000), min_size=1, max_size=6), label="numels"))
    sampler = Sampler(layout)
    rows, tasks = data.draw(st.integers(1, 9), label="rows"), data.draw(st.integers(1, 4), label="tasks")
    rule, order = data.draw(st.sampled_from(Rule)), data.draw(st.sampled_from(Order))
    mix = sampler.mix(len(layout.numels), rows, rows) if data.draw(st.booleans(), label="mixed") else None
    check(backend, sampled(sampler, rows, tasks, rule, mix=mix), layout, rule, order)


@RULES
def test_hyper_parameters_of_each_segment(backend: Backend, rule: Rule) -> None:
    """Sign, kind of decay, momentum's options and rates differ between the tensors of one launch."""
    layout = Layout((40,) * 8)
    sampler = Sampler(layout)
    segments = sampler.segments(
        lr=[0.1, 0.2, 0.3, 0.0, 0.5, 0.6, 0.7, 0.8],
        weight_decay=[0.0, 0.1, 0.0, 0.1, 0.2, 0.0, 0.1, 0.3],
        decoupled=[1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0],
        maximize=[0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0],
        beta1=[0.9, 0.0, 0.5, 0.9, 0.95, 0.9, 0.0, 0.8],
        beta2=[0.999, 0.99, 0.9, 0.0, 0.999, 0.95, 0.9999, 0.5],
        eps=[1e-8, 1e-3, 1e-8, 1e-8, 0.0, 1e-6, 1e-8, 1.0],
        dampening=[0.0, 0.5, 0.0, 0.1, 0.0, 0.0, 0.3, 0.0],
        nesterov=[0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0],
        amsgrad=[1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0],
    )
    for steps_taken in (0, 1, 1000):
        problem = sampled(sampler, 4, 2, rule, segments=segments, mix=sampler.mix(4, 4), steps_taken=steps_taken)
        check(backend, problem, layout, rule)


@pytest.mark.parametrize("rule", [Rule.ADAM, Rule.AMSGRAD], ids=lambda rule: rule.name.lower())
def test_the_second_moment_is_as_exact_as_float32_can_hold(backend: Backend, rule: Rule) -> None:
    """1 - beta2 taken in float32 would make it wrong by 1e-5."""
    layout = Layout((1000,))
    problem = sampled(Sampler(layout), 2, 1, rule, segments=Sampler(layout).segments(beta2=0.999), steps_taken=0)
    problem.exp_avg_sq.masked_fill_(layout.inside, 0.0)
    after, expected = problem.run(backend, rule), problem.oracle(rule)
    exact = expected.exp_avg_sq[:, layout.inside]
    assert_within(after.exp_avg_sq[:, layout.inside], exact, 4 * 2**-24 * exact)


# Each rule in torch, and the fields that it takes for that.
PEERS: dict[Rule, tuple[Callable[..., torch.optim.Optimizer], dict[str, float]]] = {
    Rule.SGD: (torch.optim.SGD, {"decoupled": 0.0}),
    Rule.MOMENTUM: (partial(torch.optim.SGD, momentum=0.9), {"decoupled": 0.0}),
    Rule.ADAM: (torch.optim.AdamW, {}),
    Rule.AMSGRAD: (partial(torch.optim.AdamW, amsgrad=True), {"amsgrad": 1.0}),
    Rule.LION: (PlainLion, {"beta2": 0.99}),
}


@RULES
def test_many_steps_follow_torch(backend: Backend, rule: Rule) -> None:
    """From nothing, 20 steps in float64; Adam's update is at most about lr, an error of it far less."""
    layout = Layout((123,))
    sampler = Sampler(layout)
    make, options = PEERS[rule]
    segments = sampler.segments(lr=0.01, weight_decay=0.1, **options)
    problem = sampled(sampler, 1, 1, rule, segments=segments, steps_taken=0)
    for name in rule.moments:
        setattr(problem, name, torch.zeros(1, layout.row))
    parameter = torch.nn.Parameter(problem.theta[0, :123].double())
    peer = make([parameter], lr=0.01, weight_decay=0.1)
    for _ in range(20):
        problem.grads = sampler.rows(1, 1)
        parameter.grad = problem.grads[0, 0, :123].double()
        peer.step()
        problem = problem.run(backend, rule)
    # A last place of theta in each step; an Adam update has a relative error of some roundings.
    allowed = 20 * (2**-24 * parameter.detach().abs().clamp_min(1) + 32 * 2**-24 * 0.01)
    assert_within(problem.theta[0, :123], parameter.detach(), allowed)
    assert problem.step.item() == 20


def unchanged(before: StepProblem, after: StepProblem, row: int, columns: slice) -> bool:
    names = [name for name in (*MATRICES, "low_precision") if getattr(before, name) is not None]
    return all(same_bits(getattr(before, name)[row, columns], getattr(after, name)[row, columns]) for name in names)


@RULES
@ORDERS
@pytest.mark.parametrize("why", ["active", "found_inf of its row", "found_inf of all"])
def test_who_does_not_take_part_keeps_every_bit(backend: Backend, rule: Rule, order: Order, why: str) -> None:
    """NaN gradients included; others still take from its parameters."""
    layout = Layout((50, 3000))
    sampler = Sampler(layout)
    problem = sampled(
        sampler,
        5,
        1,
        rule,
        mix=sampler.mix(5, 5),
        ema=sampler.rows(5),
        low_precision=sampler.rows(5, dtype=torch.bfloat16),
    )
    problem.grads[2] = torch.nan
    rest = [row for row in range(5) if row != 2]
    if why == "active":
        problem.active = torch.ones(5, 2, dtype=torch.bool)
        problem.active[2] = False
    elif why == "found_inf of its row":
        problem.found_inf = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0])
    else:
        problem.found_inf, rest = torch.tensor([1.0]), []
    after = problem.run(backend, rule, order)
    for row in range(5):
        assert unchanged(problem, after, row, slice(None)) == (row not in rest)
        assert after.step[row].tolist() == ([4.0, 4.0] if row in rest else [3.0, 3.0])
    if rest:
        problem.grads[2] = 0.0  # does not matter either way
        check(backend, problem, layout, rule, order)
        problem.theta[2, :50] += 1.0
        shifted = problem.run(backend, rule, order)
        assert not bool((shifted.theta == after.theta)[rest, :50].any())


@RULES
def test_one_tensor_of_a_row_may_stay_behind(backend: Backend, rule: Rule) -> None:
    """A tensor without a gradient: neither it nor its counter moves; when it comes back, its own count goes on."""
    layout = Layout((50, 3000))
    sampler = Sampler(layout)
    problem = sampled(sampler, 3, 2, rule, active=torch.tensor([[True, True], [False, True], [True, False]]))
    after = check(backend, problem, layout, rule)
    assert after.step.tolist() == [[4.0, 4.0], [3.0, 4.0], [4.0, 3.0]]
    first, second = slice(0, 50), slice(layout.offsets[1], None)
    assert unchanged(problem, after, 1, first)
    assert unchanged(problem, after, 2, second)
    assert not unchanged(problem, after, 1, second)
    after.active = None
    assert check(backend, after, layout, rule).step.tolist() == [[5.0, 5.0], [4.0, 5.0], [5.0, 4.0]]


@RULES
@ORDERS
def test_the_identity_as_mix_is_no_mix(backend: Backend, rule: Rule, order: Order) -> None:
    layout = Layout((4097, 17))
    sampler = Sampler(layout)
    for rows in ROWS:
        problem = sampled(sampler, rows, 2, rule)
        without = problem.run(backend, rule, order)
        problem.mix = torch.eye(rows, dtype=torch.float64)
        assert same_bits(problem.run(backend, rule, order).theta, without.theta)


@ORDERS
def test_a_row_that_diverged_stays_with_those_that_take_from_it(backend: Backend, order: Order) -> None:
    layout = Layout((100,))
    sampler = Sampler(layout)
    problem = sampled(sampler, 6, 1, Rule.ADAM)
    without = problem.run(backend, Rule.ADAM, order)
    problem.mix = sampler.mix(6, 6, identity_rows=(0, 3, 5))
    problem.theta[2, :100] = torch.inf
    after = problem.run(backend, Rule.ADAM, order)
    assert same_bits(after.theta[[0, 3, 5]], without.theta[[0, 3, 5]])
    assert not bool(torch.isfinite(after.theta[4, :100]).any())


@RULES
def test_tensors_that_are_not_blended(backend: Backend, rule: Rule) -> None:
    layout = Layout((100, 3000, 17))
    sampler = Sampler(layout)
    problem = sampled(sampler, 5, 1, rule, segments=sampler.segments(transfer=[0.0, 1.0, 0.0]))
    without = problem.run(backend, rule)
    problem.mix = sampler.mix(5, 5)
    blended = check(backend, problem, layout, rule)
    alone = layout.segment_of != 1
    assert same_bits(blended.theta[:, alone], without.theta[:, alone])
    assert not bool((blended.theta == without.theta)[:, ~alone].any())


@ORDERS
def test_a_common_shift_passes_through(backend: Backend, order: Order) -> None:
    """Without decay nothing but differences enters: rows far from zero are blended as well as rows near it."""
    layout = Layout((3000,))
    sampler = Sampler(layout)
    segments = sampler.segments(weight_decay=0.0, lr=0.0)
    problem = sampled(sampler, 5, 1, Rule.SGD, mix=sampler.mix(5, 5), segments=segments)
    problem.theta = torch.randint(-512, 513, problem.theta.shape, generator=sampler.generator).float() / 1024
    near = problem.run(backend, Rule.SGD, order).theta.double()
    problem.theta += 4096.0
    far = problem.run(backend, Rule.SGD, order).theta.double()
    assert_within(far[:, :3000], near[:, :3000] + 4096.0, 2**-12 * 1.5)  # the last place at 4096 is 2^-11


@pytest.mark.parametrize("rule", [Rule.SGD, Rule.ADAM], ids=lambda rule: rule.name.lower())
def test_a_mask_of_one_row_and_a_scale_reach_every_chunk(backend: Backend, rule: Rule) -> None:
    layout = Layout((40_000,))
    problem = sampled(Sampler(layout), 2, 1, rule, grad_scale=torch.tensor([0.25]), found_inf=torch.tensor([1.0, 0.0]))
    check(backend, problem, layout, rule)


@pytest.mark.parametrize("theta_dtype", FLOATS, ids=str)
def test_lion_takes_the_sign_of_zero_for_zero(backend: Backend, theta_dtype: torch.dtype) -> None:
    """Where the average and the gradient cancel or are zero, nothing moves; a NaN stays one; all else moves by lr."""
    layout = Layout((40,))
    sampler = Sampler(layout)
    segments = sampler.segments(lr=0.5, weight_decay=0.0, beta1=0.5, beta2=0.5)
    problem = sampled(sampler, 1, 1, Rule.LION, theta_dtype=theta_dtype, segments=segments)
    problem.exp_avg[:, :40], problem.grads[:, :, :40] = 0.0, 0.0
    problem.theta[:, :40] = 8.0
    problem.exp_avg[0, 1], problem.grads[0, 0, 1] = 3.0, -3.0
    problem.exp_avg[0, 2], problem.grads[0, 0, 2] = -0.0, -0.0
    tiny = torch.finfo(theta_dtype).tiny
    problem.exp_avg[0, 3], problem.grads[0, 0, 4], problem.grads[0, 0, 5] = tiny, -tiny, torch.inf
    problem.grads[0, 0, 6] = torch.nan
    after = problem.run(backend, Rule.LION).theta[0, :40].tolist()
    assert after[:6] + after[7:] == [8.0, 8.0, 8.0, 7.5, 8.5, 7.5] + [8.0] * 33
    assert after[6] != after[6]
