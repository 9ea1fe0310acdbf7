"""How weightings are asked: by an optimizer through a context, or alone; what they say to bad input."""

from __future__ import annotations

import pytest
import torch

from mt2o_ext.weighting import Draw, Needs, Weighting, WeightingContext
from support.weighting.problems import (
    METHODS,
    VARIANTS,
    assert_close,
    every_weighting,
    normal,
    steps,
)


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
        with pytest.raises(ValueError, match=f"expected context.{name}, got None"):
            weighting.weights(WeightingContext(preferences=plain.preferences, **lacking))
    assert all(torch.equal(tensor, before[name]) for name, tensor in weighting.state_dict().items())
    assert weighting.weights(WeightingContext(preferences=plain.preferences, **needed)).isfinite().all()


@every_weighting()
def test_inference_mode_changes_nothing(make):
    """Whose tensors count no versions."""
    rows = normal(3, 3, 7)[0]
    given = {"losses": torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64), "gram": rows @ rows.mT}
    given |= {"segments": torch.stack([part @ part.mT for part in rows.chunk(2, -1)]), "cross": rows @ rows.mT}
    plain, inside = make(), make()
    expected = [plain(**given, generator=torch.Generator().manual_seed(0)) for _ in range(2)]
    with torch.inference_mode():
        found = [
            inside(**{name: one.clone() for name, one in given.items()}, generator=torch.Generator().manual_seed(0))
            for _ in range(2)
        ]
    assert_close(torch.stack(found), torch.stack(expected))


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
    with pytest.raises(ValueError, match=r"expected preferences \["):
        plain.step(weighting, 0)


def test_gram_of_another_shape_is_refused():
    weighting = METHODS["upgrad"]()
    weighting.bind(1, 3, 1, "cpu")
    context = WeightingContext(preferences=torch.ones(1, 3).double() / 3, gram=torch.eye(4).double()[None])
    with pytest.raises(ValueError, match="expected gram of 1 subproblems and 3 tasks, got"):
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


def test_gradients_in_the_place_of_their_gram_matrix_are_refused():
    with pytest.raises(ValueError, match=r"expected gram \[T, T\], got \[2, 100\].*pass the Gram matrix J @ J.T"):
        METHODS["upgrad"]()(torch.zeros(2, 100))
