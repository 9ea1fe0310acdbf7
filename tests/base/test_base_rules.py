"""All base rules, from what they say of themselves."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from mt2o_ext import base
from mt2o_ext.base import BASE_RULES, AdamW, BaseRule, as_base_rule
from mt2o_ext.entries import ENTRIES
from mt2o_ext.ops import FIELDS, MOMENTS, Rule
from support.plain_lion import PlainLion

PEERS: dict[str, Any] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "lion": PlainLion,
}
EACH = pytest.mark.parametrize("name", BASE_RULES)


def test_every_rule_is_listed_and_has_a_peer() -> None:
    classes = [getattr(base, name) for name in base.__all__]
    rules = [one for one in classes if isinstance(one, type) and issubclass(one, BaseRule) and one is not BaseRule]
    assert {rule.__name__.lower(): rule for rule in rules} == BASE_RULES
    assert PEERS.keys() == BASE_RULES.keys()


def test_every_rule_of_the_kernels_serves_one() -> None:
    assert {rule for kind in BASE_RULES.values() for rule in kind.rules} == set(Rule)


@EACH
def test_a_name_stands_for_the_default_options(name: str) -> None:
    assert as_base_rule(name) == as_base_rule(name.upper()) == BASE_RULES[name]()
    with pytest.raises(ValueError, match=BASE_RULES[name].__name__):
        as_base_rule("adan")


@EACH
def test_defaults_are_those_of_the_peer(name: str) -> None:
    theirs = PEERS[name]([torch.nn.Parameter(torch.ones(1))]).param_groups[0]
    ours = {"lr": BASE_RULES[name].lr, **BASE_RULES[name]().defaults()}
    assert ours == {key: theirs[key] for key in ours}


@EACH
def test_options_fill_columns_of_the_kernels_table(name: str) -> None:
    rule = BASE_RULES[name]()
    filled = rule.fields(rule.defaults())
    assert set(filled) <= set(FIELDS) - {"lr", "transfer", "ema"}
    numbers = [value for value in rule.defaults().values() for value in (value if type(value) is tuple else (value,))]
    assert sorted(map(float, filled.values())) == sorted(map(float, [*numbers, *rule.always.values()]))


@EACH
def test_options_out_of_range_are_refused(name: str) -> None:
    rule = BASE_RULES[name]()
    rule.check(rule.defaults())
    for option, default in rule.defaults().items():
        wrong: list[Any] = ["no", None]
        if isinstance(default, tuple):
            wrong += [(0.5,), (0.5, 1.0), (-0.1, 0.5), 0.5, (0.5, float("nan")), (True, 0.5)]
        elif not isinstance(default, bool):
            wrong += [float("nan"), float("inf"), float("-inf"), True]
            wrong += [-1.0] if option != "dampening" else []
        for value in wrong:
            with pytest.raises((TypeError, ValueError), match=option):
                rule.check({**rule.defaults(), option: value})


@EACH
def test_moments_of_groups(name: str) -> None:
    """An option that asks for more moments gets them; one launch serves groups with and without it."""
    rule = BASE_RULES[name]()
    plain, everything = rule.defaults(), rule.defaults()
    everything.update({option: 0.9 for option in rule.rules.values() if option is not None})
    first, *_ = order = list(rule.rules)
    last = order[-1]
    assert (rule.rule([plain]), rule.rule([plain, everything]), rule.rule([])) == (first, last, first)
    assert tuple(rule.moments(plain).values()) == first.moments
    assert tuple(rule.moments(everything).values()) == last.moments
    assert rule.moments(everything) == rule.state_keys()
    assert set(rule.moments(plain)) <= set(rule.needed) <= {"step", *rule.state_keys()}
    assert rule.counts_steps != bool(rule.counted_by)
    assert rule.state_keys().keys() <= ENTRIES.keys()


def test_moments_begin_with_the_first() -> None:
    for rule in Rule:
        assert rule.moments == MOMENTS[: len(rule.moments)]


def test_a_rule_of_ones_own() -> None:
    """A subclass inherits what it does not say."""

    class Quick(AdamW):
        pass

    assert Quick(eps=1e-6).fields(Quick().defaults()) == AdamW().fields(AdamW().defaults())


# ---------------------------------------------------------------------- the page
@pytest.fixture(scope="module")
def document() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "docs" / "base_rules.py"
    spec = importlib.util.spec_from_file_location("base_rules_document", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_code_says(document: ModuleType) -> None:
    assert document.PAGE.read_text() == document.page(), "run python docs/base_rules.py"


def test_the_page_has_a_row_and_a_section_for_every_rule(document: ModuleType) -> None:
    text = document.PAGE.read_text()
    for name, rule in BASE_RULES.items():
        assert f'| `"{name}"` |' in text
        assert f"\n## {rule.__name__}\n" in text
