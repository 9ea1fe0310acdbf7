"""What every weighting keeps to: scales, bad numbers, degenerate rows, state, batches, permutations."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from weighting_problems import (
    KINDS,
    VARIANTS,
    Steps,
    assert_close,
    assert_parallel,
    every_weighting,
    normal,
    steps,
)

from mt2o_ext.weighting import Draw, Needs, Weighting, WeightingContext
from mt2o_ext.weighting.shorthand import METHODS

# Their numbers are in units of the losses, and they say so: no scale law.
UNSCALED = ("uw", "imtl-l", "stch in units", "cdtt unit", "moco raw", "modo raw")
# Their answers depend on the order of the tasks: a chain of neighbours, and a repair in that order.
ORDERED = ("ldc-mtl", "ldc-mtl r=1", "cdtt", "cdtt unit")


@every_weighting()
@pytest.mark.parametrize("kind", KINDS)
def test_directions_are_finite_whatever_the_rows(make, kind):
    for direction in steps(kind, num_subproblems=1, count=3).run(make()):
        assert direction.dtype == torch.float64
        assert direction.isfinite().all()


@every_weighting(without=UNSCALED)
@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_losses_times_a_number_change_the_length_by_the_degree_and_no_direction(make, scale):
    weighting = make()
    plain = steps("conflicting", num_subproblems=1)
    before = plain.run(weighting)
    after = replace(plain, scale=scale).run(weighting)
    assert weighting.degree is not None
    for one, other in zip(before, after, strict=True):
        assert one.norm() > 0
        assert_parallel(other, one, 1e-6)
        assert_close(other.norm(), one.norm() * scale**weighting.degree, rtol=1e-6)


def test_only_methods_in_the_units_of_their_losses_have_no_scale_law():
    assert set(UNSCALED) == {name for name, make in VARIANTS.items() if make().degree is None}


@every_weighting()
@pytest.mark.parametrize("where", ["gradient", "loss"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_numbers_never_raise_and_touch_neither_state_nor_neighbours(make, where, bad):
    weighting, plain = make(), steps()
    expected = plain.run(weighting)
    kept = weighting.state_dict()
    weighting = make()
    plain.run(weighting, end=2)
    before = {name: tensor.clone() for name, tensor in weighting.state_dict().items()}
    broken = replace(plain, jacobians=[each.clone() for each in plain.jacobians], losses=list(plain.losses))
    if where == "gradient":
        broken.jacobians[2][:, 1, 2, 3] = bad
    else:
        broken.losses[2] = broken.losses[2].clone()
        broken.losses[2][1, 2] = bad
    direction = broken.step(weighting, 2)
    assert direction[1].isnan().all()
    assert_close(direction[0], expected[2][0])
    for name, tensor in weighting.state_dict().items():
        assert torch.equal(rows_of_subproblem(tensor, 1), rows_of_subproblem(before[name], 1)), name
    # Subproblem 0 goes on as if nothing had been.
    assert_close(broken.step(weighting, 3)[0], expected[3][0])
    for name, tensor in weighting.state_dict().items():
        assert torch.equal(rows_of_subproblem(tensor, 0), rows_of_subproblem(kept[name], 0)), name


def rows_of_subproblem(tensor: Tensor, subproblem: int) -> Tensor:
    """A state has K rows, or K S of them."""
    return tensor.chunk(2)[subproblem]


@every_weighting()
def test_all_zero_rows_give_no_direction(make):
    plain = steps(num_subproblems=1, count=2)
    for direction in replace(plain, jacobians=[0 * each for each in plain.jacobians]).run(make()):
        assert not direction.any()


@every_weighting()
def test_resuming_is_bitwise(make):
    plain = steps()
    whole = make()
    expected = plain.run(whole)
    first = make()
    plain.run(first, end=2)
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second = make()
    second.bind(*plain.shape, "cpu")
    second.load_state_dict(torch.load(buffer))
    for one, other in zip(plain.run(second, begin=2), expected[2:], strict=True):
        assert torch.equal(one, other)
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in second.state_dict().items())


@every_weighting()
def test_a_saved_state_does_not_change_with_later_steps(make):
    weighting, plain = make(), steps()
    plain.run(weighting, end=2)
    saved = {name: tensor for name, tensor in weighting.state_dict().items() if "memory." not in name}
    copies = {name: tensor.clone() for name, tensor in saved.items()}
    plain.run(weighting, begin=2)
    assert all(torch.equal(tensor, copies[name]) for name, tensor in saved.items())


def test_what_learns_or_remembers_has_a_state():
    with_state = {
        "uw", "imtl-l", "dwa", "stch", "famo", "ldc-mtl", "gradnorm", "gradvac", "wpcgrad", "cdtt", "nash-mtl", "pivrg",
        "modo", "moco", "db-mtl", "m-config", "excessmtl",
    }  # fmt: skip
    for name, make in METHODS.items():
        weighting = make()
        steps(count=1).run(weighting)
        assert bool(weighting.state_dict()) == (name in with_state), name


@every_weighting()
def test_a_state_of_another_size_is_refused_and_changes_nothing(make):
    weighting = make()
    plain = steps()
    plain.run(weighting, end=1)
    state = weighting.state_dict()
    if not state:
        with pytest.raises(ValueError, match="expected the state"):
            weighting.load_state_dict({"targets": torch.zeros(2)})
        return
    name = next(iter(state))
    with pytest.raises(ValueError, match=r"expected|remembers|state"):
        weighting.load_state_dict({**state, "surplus": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"expected|remembers|state"):
        weighting.load_state_dict({key: tensor for key, tensor in state.items() if key != name})
    assert all(torch.equal(tensor, state[key]) for key, tensor in weighting.state_dict().items())


@every_weighting()
def test_binding_again_forgets(make):
    weighting, plain = make(), steps(num_subproblems=1, count=3)
    assert all(torch.equal(*pair) for pair in zip(plain.run(weighting), plain.run(weighting), strict=True))


@every_weighting(without=ORDERED)
@pytest.mark.parametrize("kind", ["random", "conflicting"])
def test_permuting_the_tasks_changes_no_direction(make, kind):
    plain = steps(kind, num_subproblems=1, num_tasks=5)
    order = torch.tensor([3, 0, 4, 2, 1])
    weighting = make()
    for one, other in zip(plain.run(weighting), plain.permuted(order).run(weighting), strict=True):
        assert_close(other, one, rtol=1e-7, atol=1e-9 * float(one.abs().max()))


@every_weighting(without=[name for name, make in VARIANTS.items() if Needs.DRAWS in make().needs])
def test_subproblems_do_not_feel_each_other(make):
    both = steps()
    together = both.run(make())
    for k in range(2):
        alone = replace(
            both,
            jacobians=[each[:, k : k + 1] for each in both.jacobians],
            losses=[each[k : k + 1] for each in both.losses],
            preferences=both.preferences[k : k + 1],
        )
        for one, other in zip(alone.run(make()), together, strict=True):
            assert_close(one[0], other[k], rtol=1e-9, atol=1e-12)


@every_weighting()
@pytest.mark.parametrize("num_tasks", [1, 2])
def test_few_tasks(make, num_tasks):
    for direction in steps(num_subproblems=1, num_tasks=num_tasks, count=2).run(make()):
        assert direction.isfinite().all()


@every_weighting()
def test_draws_decide_alone(make):
    plain = steps("conflicting", num_tasks=5, count=2)
    once, again = plain.run(make()), plain.run(make())
    assert all(torch.equal(*pair) for pair in zip(once, again, strict=True))
    other = replace(plain, seed=8).run(make())
    same = all(torch.equal(*pair) for pair in zip(once, other, strict=True))
    assert same == (Needs.DRAWS not in make().needs)


@every_weighting()
def test_what_is_not_needed_is_not_read(make):
    plain, weighting = steps(count=1), make()
    weighting.bind(*plain.shape, "cpu")
    rows = plain.jacobians[0][0].clone()
    everything = {
        "losses": plain.losses[0],
        "gram": rows @ rows.mT,
        "segments": torch.stack([part @ part.mT for part in rows.chunk(2, -1)], 1),
        "cross": rows @ rows.mT,
        "draw": Draw.new(torch.Generator().manual_seed(1)),
    }
    flags = {"losses": Needs.LOSSES, "gram": Needs.GRAM | Needs.DIAGONAL, "segments": Needs.SEGMENTS,
             "cross": Needs.CROSS, "draw": Needs.DRAWS}  # fmt: skip
    if Needs.GRAM not in weighting.needs and Needs.DIAGONAL in weighting.needs:
        everything["gram"] = everything["gram"].diagonal(dim1=-2, dim2=-1).diag_embed()
    needed = {name: value for name, value in everything.items() if flags[name] & weighting.needs}
    before = weighting.state_dict()
    if Needs.ROWS in weighting.needs:
        weighting.transform_([rows], WeightingContext(preferences=plain.preferences, **needed))
        before = weighting.state_dict()
    for name in needed:
        lacking = {key: value for key, value in needed.items() if key != name}
        with pytest.raises(ValueError, match=f"needs context.{name}"):
            weighting.weights(WeightingContext(preferences=plain.preferences, **lacking))
    assert all(torch.equal(tensor, before[name]) for name, tensor in weighting.state_dict().items())
    assert weighting.weights(WeightingContext(preferences=plain.preferences, **needed)).isfinite().all()


@every_weighting()
def test_an_unbound_weighting_says_so(make):
    context = WeightingContext(preferences=torch.ones(1, 2, dtype=torch.float64) / 2)
    with pytest.raises(RuntimeError, match="call bind"):
        make().weights(context)
    with pytest.raises(RuntimeError, match="call bind"):
        make().load_state_dict({})


@every_weighting()
def test_another_number_of_tasks_is_refused(make):
    plain, weighting = steps(count=1), make()
    weighting.bind(2, 3, 2, "cpu")
    with pytest.raises(ValueError, match=r"was bound to"):
        plain.step(weighting, 0)


def test_gram_of_another_shape_is_refused():
    weighting = METHODS["upgrad"]()
    weighting.bind(1, 3, 1, "cpu")
    context = WeightingContext(preferences=torch.ones(1, 3).double() / 3, gram=torch.eye(4).double()[None])
    with pytest.raises(ValueError, match="got gram of shape"):
        weighting.weights(context)


@every_weighting(without=[name for name, make in VARIANTS.items() if Needs.ROWS in make().needs])
def test_alone_a_weighting_is_called_with_matrices_at_hand(make):
    rows, weighting = normal(4, 30), make()
    gram, losses = rows @ rows.T, 0.1 + normal(4, seed=1).abs()
    given = {"losses": losses, "cross": gram, "segments": gram[None], "generator": torch.Generator().manual_seed(3)}
    alone = weighting(gram, **given)
    assert alone.shape == ((1, 4) if weighting.per_segment else (4,))
    batch = {name: value[None].float() for name, value in given.items() if name != "generator"}
    weighting = make()
    again = weighting(gram[None], **batch, generator=torch.Generator().manual_seed(3))
    assert again.shape == (1, *alone.shape)
    assert_close(again[0], alone, rtol=1e-4, atol=1e-6)


def test_a_weighting_called_alone_keeps_its_state_until_the_shape_changes():
    weighting: Weighting = METHODS["modo"]()
    gram = torch.diag(torch.tensor([1.0, 4.0]))
    first, second = weighting(cross=gram), weighting(cross=gram)
    assert not torch.equal(first, second)
    weighting(cross=torch.eye(3))
    assert torch.equal(weighting(cross=gram), first)


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({}, ValueError, "at least one"),
        ({"gram": torch.ones(2)}, ValueError, r"expected gram \[T, T\]"),
        ({"gram": torch.ones(2, 2, dtype=torch.int64)}, TypeError, "floating-point"),
        ({"gram": [[1.0]]}, TypeError, "floating-point"),
        ({"gram": torch.ones(2, 2), "losses": torch.ones(3)}, ValueError, "one number of"),
        ({"gram": torch.ones(4, 2, 2), "losses": torch.ones(3, 2)}, ValueError, "one number of"),
    ],
)
def test_tables_that_do_not_fit_together_are_refused(given, error, match):
    with pytest.raises(error, match=match):
        METHODS["upgrad"]()(**given)


def test_preferences_of_zero_are_allowed():
    plain: Steps = steps(num_subproblems=1, num_tasks=3, count=2)
    plain = replace(plain, preferences=torch.tensor([[0.0, 0.3, 0.7]], dtype=torch.float64))
    for name, make in METHODS.items():
        assert all(direction.isfinite().all() for direction in plain.run(make())), name
