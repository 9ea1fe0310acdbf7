"""Names, defaults and bad settings."""

from __future__ import annotations

import importlib.util
import inspect
import re
from pathlib import Path

import pytest
import torch

import mt2o_ext
from mt2o_ext import contrib
from mt2o_ext import weighting as W
from support.weighting.problems import METHODS

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "weightings.py"
NO_METHODS = ("Draw", "LossDomain", "Needs", "Weighting", "WeightingContext")


def test_names_give_methods_with_their_defaults():
    assert isinstance(W.as_weighting("cagrad"), W.CAGrad)
    assert isinstance(W.as_weighting("Nash-MTL"), W.NashMTL)
    assert isinstance(W.as_weighting("nash_mtl"), W.NashMTL)
    assert isinstance(W.as_weighting(None), W.LinearWeighting)
    own = W.CAGrad(0.3)
    assert W.as_weighting(own) is own
    assert W.as_weighting("cagrad") is not W.as_weighting("cagrad")
    for name, make in W.register.items():
        assert type(W.as_weighting(name)) is make


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ("pcgard", ValueError, r"did you mean .*'pcgrad'.*All names are aligned-mtl, cagrad"),
        ("ema", ValueError, r"pass an instance, Ema\(inner=...\)"),
        (W.CAGrad, TypeError, "the class CAGrad"),
        (3, TypeError, "got 3"),
    ],
)
def test_other_names_and_things_are_refused(given, error, match):
    with pytest.raises(error, match=match):
        W.as_weighting(given)


def test_every_method_is_a_public_name():
    for make in (*W.register.values(), *W.register_around.values()):
        assert getattr(W, make.__name__) is make and make.__name__ in W.__all__
    assert mt2o_ext.weighting is W and not set(W.__all__) & set(mt2o_ext.__all__)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: W.CAGrad(-0.1), ValueError, "c in|c finite|expected c"),
        (lambda: W.CAGrad(rescale=3), ValueError, "rescale"),
        (lambda: W.CAGrad("0.5"), TypeError, "expected c"),
        (lambda: W.MGDA(normaliser="l1"), ValueError, "'l2', 'loss', 'loss\\+'"),
        (lambda: W.MGDA(apply_on="both"), ValueError, "apply_on"),
        (lambda: W.GradVac(beta=2.0), ValueError, "beta"),
        (lambda: contrib.WPCGrad(protect="all"), ValueError, "protect"),
        (lambda: contrib.WPCGrad(reference="mean"), ValueError, "reference"),
        (lambda: W.TaskTensioner(tension="high"), ValueError, "tension"),
        (lambda: W.AlignedMTL(scale="max"), ValueError, "scale"),
        (lambda: W.NashMTL(every=0), ValueError, "every"),
        (lambda: W.NashMTL(max_norm=-1.0), ValueError, "max_norm"),
        (lambda: W.FairGrad(-1.0), ValueError, "alpha"),
        (lambda: W.PIVRG(bound=1.0), ValueError, "bound > 1"),
        (lambda: W.DWA(tau=0.0), ValueError, "tau"),
        (lambda: W.STCH(0.0), ValueError, "mu"),
        (lambda: W.STCH(warmup_epochs=-1), ValueError, "warmup_epochs"),
        (lambda: W.FAMO(lr=float("nan")), ValueError, "lr"),
        (lambda: W.FAMO(lower_bound="low"), TypeError, "lower_bound"),
        (lambda: W.UncertaintyWeighting(initial=float("inf")), ValueError, "initial"),
        (lambda: W.LinearWeighting([1.0, float("nan")]), ValueError, "values finite"),
        (lambda: W.MomentumConFIG(beta=1.0), ValueError, "beta"),
        (lambda: W.MoCo(projection="ball"), ValueError, "projection"),
        (lambda: W.GradDrop(leak=1.5), ValueError, "leak"),
        (lambda: W.ExcessMTL(eta=-1.0), ValueError, "eta"),
        (lambda: W.SDMGrad(iterations=0), ValueError, "iterations"),
        (lambda: W.EPO(tolerance=0.0), ValueError, "tolerance"),
    ],
)
def test_bad_settings_are_refused_at_once(make, error, match):
    with pytest.raises(error, match=match):
        make()


@pytest.mark.parametrize("method", [getattr(W, name) for name in W.__all__] + [contrib.LDCMTL, contrib.WPCGrad])
def test_flags_are_true_or_false(method):
    """A word such as "no" would count as True."""
    if not (isinstance(method, type) and issubclass(method, W.Weighting)):
        return
    for name, parameter in inspect.signature(method.__init__).parameters.items():
        if isinstance(parameter.default, bool):
            with pytest.raises(TypeError, match=f"{name} as True or False"):
                method(**{name: "no"})


def test_settings_for_another_number_of_tasks_are_refused():
    for weighting in (W.LinearWeighting([1, 2]), W.FAMO(lower_bound=[0, 0]), W.STCH(ideal=[0, 0])):
        with pytest.raises(ValueError, match="for 3 tasks, got 2"):
            weighting(losses=torch.ones(3))


@pytest.fixture(scope="module")
def document():
    spec = importlib.util.spec_from_file_location("weightings_document", DOCUMENT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_document_is_what_the_code_says(document):
    assert document.PAGE.read_text() == document.page(), "run python docs/weightings.py"


def test_the_document_has_a_row_and_a_section_for_every_weighting(document):
    text = document.PAGE.read_text()
    classes = {name for name in W.__all__ if isinstance(getattr(W, name), type) and name not in NO_METHODS}
    classes |= {method.__name__ for method in contrib.register.values()}
    assert set(re.findall(r"^\| `(\w+)`", text, re.M)) == classes
    assert set(re.findall(r"^### (\w+)", text, re.M)) == classes


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("GLS", "Needs positive losses: a step with another one is skipped"),
        ("GradNorm", "Needs positive losses at first, and later ones that are not negative: "),
        ("MoCo", "Needs losses that are not negative: "),
        ("LogLosses", "Needs positive losses: "),
        ("UncertaintyWeighting", "Takes any losses."),
    ],
)
def test_the_document_says_which_losses_a_method_needs(document, name, sentence):
    text = document.PAGE.read_text()
    assert f"\n{sentence}" in text.partition(f"### {name}\n")[2].partition("\n### ")[0]
    assert "losses" not in text.partition("### PCGrad\n")[2].partition("\n### ")[0]


def test_every_method_names_its_source(document):
    without = {make.__name__ for make in METHODS.values() if document.source(make) == "-"}
    assert without == {"LinearWeighting"}


FORMULAS = [
    Path(__file__).with_name(f"test_{name}.py").read_text()
    for name in ("equations", "losses", "pamal", "programs", "projections", "row_methods", "torchjd")
]


@pytest.mark.parametrize("method", W.register.values(), ids=W.register)
def test_every_method_outside_of_contrib_is_compared_with_something_independent(method):
    assert any(re.search(rf"\b{method.__name__}\(", text) for text in FORMULAS), "see what contrib is for"
