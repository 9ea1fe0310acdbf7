"""The checks of arguments that all pieces share: what they return, and the three parts of every message."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from mt2o_ext import checks


@pytest.mark.parametrize(
    ("check", "value", "result"),
    [
        (checks.check_count, 3, 3),
        (lambda name, value: checks.check_count(name, value, 0), 0, 0),
        (checks.check_flag, False, False),
        (lambda name, value: checks.check_index(name, value, 2), np.int64(1), 1),
        (checks.check_function, len, len),
        (lambda name, value: checks.check_list(name, value, "pass several"), (1, 2), [1, 2]),
        (checks.check_real, 2, 2.0),
        (lambda name, value: checks.check_real(name, value, -math.inf), -1.5, -1.5),
        (checks.check_positive, 1e-300, 1e-300),
        (lambda name, value: checks.check_choice(name, value, ("a", "b")), "b", "b"),
        (checks.check_per_task, 1, 1.0),
        (checks.check_per_task, [1, 2], (1.0, 2.0)),
        (checks.check_per_task, torch.tensor([1, 2]), (1.0, 2.0)),
        (checks.check_per_task, np.array([1.0, 2.0]), (1.0, 2.0)),
        (checks.check_per_task, torch.tensor(3), 3.0),
    ],
)
def test_good_values_come_back_in_one_form(check: Callable[..., Any], value: Any, result: Any) -> None:
    found = check("x", value)
    assert found == result and type(found) is type(result)


ROWS = torch.full((2, 2), 0.5, dtype=torch.float64)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: checks.check_count("x", True), TypeError),
        (lambda: checks.check_count("x", 2.0), TypeError),
        (lambda: checks.check_count("x", 0), ValueError),
        (lambda: checks.check_flag("x", 1), TypeError),
        (lambda: checks.check_index("x", "1", 2), TypeError),
        (lambda: checks.check_index("x", 1.0, 2), TypeError),
        (lambda: checks.check_index("x", True, 2), TypeError),
        (lambda: checks.check_index("x", 2, 2), IndexError),
        (lambda: checks.check_index("x", -1, 2), IndexError),
        (lambda: checks.check_function("x", 1), TypeError),
        (lambda: checks.check_list("x", 1, "pass several"), TypeError),
        (lambda: checks.check_list("x", "ab", "pass several"), TypeError),
        (lambda: checks.check_list("x", torch.ones(2), "pass several"), TypeError),
        (lambda: checks.check_choice("x", torch.ones(2), ("a", "b")), ValueError),
        (lambda: checks.check_real("x", "1"), TypeError),
        (lambda: checks.check_real("x", True), TypeError),
        (lambda: checks.check_real("x", math.nan), ValueError),
        (lambda: checks.check_real("x", -1.0), ValueError),
        (lambda: checks.check_real("x", 2.0, 0.0, 1.0), ValueError),
        (lambda: checks.check_real("x", math.inf, -math.inf), ValueError),
        (lambda: checks.check_positive("x", 0.0), ValueError),
        (lambda: checks.check_choice("x", "c", ("a", "b")), ValueError),
        (lambda: checks.check_per_task("x", "abc"), TypeError),
        (lambda: checks.check_per_task("x", []), ValueError),
        (lambda: checks.check_per_task("x", [1.0, math.nan]), ValueError),
        (lambda: checks.check_per_task("x", [1.0, 0.0], positive=True), ValueError),
        (lambda: checks.per_task("x", (1.0, 2.0), 3, "cpu"), ValueError),
        (lambda: checks.check_simplex(ROWS.float()), TypeError),
        (lambda: checks.check_simplex(ROWS[0]), ValueError),
        (lambda: checks.check_simplex(ROWS * math.nan), ValueError),
        (lambda: checks.check_simplex(ROWS * 2), ValueError),
        (lambda: checks.check_mix(ROWS * 2, 2), ValueError),
    ],
)
def test_bad_ones_are_refused_with_what_was_expected_what_came_and_what_to_do(
    make: Callable[[], Any], error: type[Exception]
) -> None:
    with pytest.raises(error) as caught:
        make()
    assert re.fullmatch(r"expected .+, got .+: \S.+", str(caught.value))


def test_numbers_of_each_task_on_the_device() -> None:
    assert checks.per_task("x", 2.0, 3, "cpu").tolist() == [2.0, 2.0, 2.0]
    assert checks.per_task("x", (1.0, 2.0), 2, "cpu").dtype == torch.float64
