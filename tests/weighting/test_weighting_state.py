"""What weightings remember, and what they refuse to load."""

from __future__ import annotations

import io

import pytest
import torch

from support.weighting.problems import (
    METHODS,
    VARIANTS,
    every_weighting,
    steps,
)


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


def test_a_state_that_fits_one_part_only_changes_none():
    weighting = VARIANTS["fallback of two that remember"]()
    plain = steps(count=3)
    plain.run(weighting, end=1)
    saved = weighting.state_dict()
    plain.run(weighting, begin=1)
    now = weighting.state_dict()
    with pytest.raises(ValueError, match="Ema expected the state"):
        weighting.load_state_dict({**saved, "second.average": torch.zeros(1)})
    assert all(torch.equal(tensor, now[name]) for name, tensor in weighting.state_dict().items())
    assert any(not torch.equal(tensor, now[name]) for name, tensor in saved.items())
