"""Registries: one new file and one line make a piece known everywhere; a piece of the user's own needs neither."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import mt2o_ext
from mt2o_ext import MT2OFused, WeightedFused, contrib, scalarization, transfer, weighting
from mt2o_ext.registry import Registry
from mt2o_ext.scalarization import Scalarization
from mt2o_ext.transfer import TransferRule
from mt2o_ext.weighting import Weighting

PACKAGE = Path(mt2o_ext.__file__).parent
REGISTRIES: dict[str, tuple[ModuleType, type, list[Registry[Any]]]] = {
    "weighting": (weighting, Weighting, [weighting.register, weighting.register_around]),
    "contrib": (contrib, Weighting, [contrib.register]),
    "transfer": (transfer, TransferRule, [transfer.register]),
    "scalarization": (scalarization, Scalarization, [scalarization.register]),
}
EACH = pytest.mark.parametrize("folder", REGISTRIES)


class Piece:
    """A base for registries of the tests' own."""


class Other(Piece):
    def __init__(self, size: int) -> None:
        self.size = size


@pytest.fixture
def register() -> Registry[Piece]:
    registry: Registry[Piece] = Registry("piece", Piece, "more elsewhere")

    @registry("good-one")
    class GoodOne(Piece):
        pass

    registry("other")(Other)
    return registry


def test_a_class_is_found_by_its_name_in_any_spelling_and_by_that_of_the_class(register: Registry[Piece]) -> None:
    for spelling in ("good-one", "GOOD_ONE", "goodone", "GoodOne"):
        assert register[spelling].__name__ == "GoodOne" and spelling in register
        assert type(register.make(spelling)) is register["good-one"]
    assert list(register) == ["good-one", "other"] and len(register) == 2
    assert "none" not in register and 3 not in register
    own = Other(2)
    assert register.make(own) is own
    assert register.make("good-one") is not register.make("good-one")


def test_what_is_no_piece_and_no_name_is_refused_with_what_is_near(register: Registry[Piece]) -> None:
    with pytest.raises(ValueError, match=r"'god-one': did you mean 'good-one'\? All names are good-one, other; more"):
        register.make("god-one")
    with pytest.raises(ValueError, match=r"got 'xyz': the names are good-one, other"):
        register.make("xyz")
    with pytest.raises(KeyError, match="did you mean 'other'"):
        register["othr"]
    with pytest.raises(ValueError, match=r"a piece with its settings.*pass an instance, Other\(size=...\)"):
        register.make("other")
    with pytest.raises(TypeError, match=r"expected a piece or its name, got the class Other: pass an instance"):
        register.make(Other)


def test_a_name_belongs_to_one_class_and_a_reload_takes_its_place(register: Registry[Piece]) -> None:
    with pytest.raises(ValueError, match="expected a new name for Third, got 'Good_One': GoodOne has it"):
        register("Good_One")(type("Third", (Piece,), {}))
    with pytest.raises(TypeError, match="expected a class of Piece"):
        register("third")(int)
    again = type("Other", (Piece,), {"__module__": Other.__module__, "__qualname__": Other.__qualname__})
    assert register("other")(again) is again is register["other"]
    assert len(register) == 2


# ---------------------------------------------------------------------- the package's own
@EACH
def test_every_file_with_a_piece_is_imported_and_every_piece_registered(folder: str) -> None:
    """A file that nobody imports would be a piece that nobody finds."""
    _, base, registries = REGISTRIES[folder]
    registered = {cls for registry in registries for cls in registry.values()}
    for path in (PACKAGE / folder).rglob("*.py"):
        name = ".".join(("mt2o_ext", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and any("register" in ast.unparse(line) for line in node.decorator_list):
                assert getattr(importlib.import_module(name), node.name) in registered
    concrete = {cls for cls in subclasses(base) if cls.__module__.startswith(f"mt2o_ext.{folder}.")}
    assert {cls for cls in concrete if not cls.__abstractmethods__} - registered <= {
        transfer.UserTransfer,
        transfer.Sequence,
        transfer.Guarded,  # around another rule
    }


def subclasses(base: type) -> Iterator[Any]:
    for cls in base.__subclasses__():
        yield cls
        yield from subclasses(cls)


@EACH
def test_the_package_exports_what_is_registered(folder: str) -> None:
    package, _, registries = REGISTRIES[folder]
    for registry in registries:
        for cls in registry.values():
            assert getattr(package, cls.__name__) is cls and cls.__name__ in package.__all__


# ---------------------------------------------------------------------- one new file
NEW = {
    "weighting": '''
"""Shares that fall with the length of the gradient."""
from mt2o_ext.weighting import Needs, Weighting, register


@register("inverse-length")
class InverseLength(Weighting):
    """Inverse lengths (nobody, 2000).

    w = 1 / |g|.
    """

    needs = Needs.DIAGONAL
    degree = 0.0

    def _weights(self, context):
        lengths = context.gram.diagonal(dim1=-2, dim2=-1).sqrt()
        return (lengths > 0) / lengths.where(lengths > 0, 1.0)
''',
    "transfer": '''
"""A rotation."""
import torch
from mt2o_ext.transfer import TransferRule, register


@register("rotation")
class Rotation(TransferRule):
    """M moves each subproblem to the next one."""

    def matrix(self, context):
        return torch.eye(len(context.preferences), dtype=torch.float64).roll(1, 0)
''',
    "scalarization": '''
"""The sum of squares."""
from dataclasses import dataclass
from mt2o_ext.scalarization import Scalarization, register


@register("squares")
@dataclass(frozen=True, repr=False)
class Squares(Scalarization):
    """sum_t w_t l_t^2 / 2."""

    def _value(self, losses, preferences):
        return (preferences * losses * losses / 2).sum(-1)

    def _gradient(self, losses, preferences):
        return preferences * losses
''',
}


@pytest.fixture
def new(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A file with one new piece, outside of the package, imported; forgotten after the test."""
    for registry in REGISTRIES[folder][2]:
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    path = tmp_path / f"new_{folder}.py"
    path.write_text(NEW[folder])
    return load(path)


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parameters() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.tensor([1.0, -2.0]))]


@pytest.mark.parametrize("folder", ["weighting"])
def test_a_new_weighting_is_known_to_optimizers_and_to_the_document(folder: str, new: ModuleType) -> None:
    params = parameters()
    optimizer = WeightedFused(params, num_tasks=2, weighting="inverse-length", base="sgd", lr=1.0)
    optimizer.step(lambda: [3.0 * params[0][0], 100.0 * params[0][1]])
    torch.testing.assert_close(params[0].detach(), torch.tensor([0.0, -3.0]))
    own = new.InverseLength()
    assert own(torch.tensor([[4.0, 0.0], [0.0, 25.0]])).tolist() == [0.5, 0.2]
    page = load(PACKAGE.parent / "docs" / "weightings.py").page()
    assert "\n| `InverseLength` | `inverse-length` | diagonal | - | 1 read | 0 | nobody, 2000 |\n" in page
    assert "\n### InverseLength\n" in page


@pytest.mark.parametrize("folder", ["transfer"])
@pytest.mark.parametrize("by_name", [True, False])
def test_a_new_rule_is_known_to_the_optimizer(folder: str, new: ModuleType, by_name: bool) -> None:
    params = parameters()
    optimizer = MT2OFused(
        params,
        num_tasks=2,
        num_subproblems=3,
        transfer="rotation" if by_name else new.Rotation(),
        base="sgd",
        lr=0.0,
        start=lambda k: params[0].data.fill_(k),
    )
    optimizer.step(lambda: [params[0].sum(), params[0].sum()])
    with optimizer.subproblem(1):
        assert params[0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("folder", ["scalarization"])
@pytest.mark.parametrize("by_name", [True, False])
def test_a_new_scalarization_is_known_to_the_optimizer(folder: str, new: ModuleType, by_name: bool) -> None:
    params = parameters()
    given = "squares" if by_name else new.Squares()
    optimizer = MT2OFused(
        params, num_tasks=2, num_subproblems=1, scalarization=given, transfer=None, base="sgd", lr=1.0
    )
    optimizer.step(lambda: [3.0 * params[0][0], 2.0 * params[0][1]])
    # Coefficients w l = 3 / 2 and -4 / 2, times the slopes 3 and 2.
    torch.testing.assert_close(params[0].detach(), torch.tensor([1.0 - 4.5, -2.0 + 4.0]))
