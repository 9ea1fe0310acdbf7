"""repeat and stack: K mini-batches for K subproblems."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from mt2o_ext import repeat, stack


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


def test_repeat_begins_anew_and_shuffles_anew() -> None:
    data = torch.arange(64)
    loader: Any = torch.utils.data.DataLoader(data, batch_size=64, shuffle=True)  # type: ignore[arg-type]
    stream = repeat(loader)
    first, second = next(stream), next(stream)
    assert not torch.equal(first, second) and torch.equal(first.sort().values, second.sort().values)
    numbers = repeat([1, 2, 3])
    assert [next(numbers) for _ in range(7)] == [1, 2, 3, 1, 2, 3, 1]


def test_repeat_of_nothing() -> None:
    with pytest.raises(ValueError, match="empty"):
        next(repeat([]))
    used = repeat(iter([1]))
    assert next(used) == 1
    with pytest.raises(ValueError, match="used up"):
        next(used)


def test_stack_keeps_the_structure() -> None:
    batches = [Pair(torch.full((4, 3), float(k)), torch.full((4,), k)) for k in range(5)]
    x, y = stack(iter(batches))
    assert x.shape == (5, 4, 3) and y.shape == (5, 4) and torch.equal(x[:, 0, 0], torch.arange(5.0))
    assert isinstance(stack(batches), Pair)
    nested = stack([{"a": [torch.ones(2)], "b": (torch.zeros(1),)} for _ in range(2)])
    assert nested["a"][0].shape == (2, 2) and nested["b"][0].shape == (2, 1)


@pytest.mark.parametrize(
    ("batches", "error", "text"),
    [
        ([], ValueError, "at least one"),
        ([torch.ones(2), torch.ones(3)], ValueError, "drop_last=True"),
        ([(torch.ones(2),), (torch.ones(2), torch.ones(2))], ValueError, "zip"),
        ([{"a": torch.ones(2)}, {"b": torch.ones(2)}], ValueError, "keys"),
        ([1.0, 2.0], TypeError, "float"),
    ],
    ids=["none", "shapes", "lengths", "keys", "numbers"],
)
def test_stack_of_what_does_not_fit(batches: list[Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        stack(batches)
