"""Writes ``weightings.md`` beside itself from the weightings themselves: their needs, states, laws and docstrings.

``python docs/weightings.py`` after a change of a docstring; a test compares the two.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path

import torch

from mt2o_ext import LossDomain
from mt2o_ext import weighting as W
from mt2o_ext.weighting import Draw, Needs, Weighting, WeightingContext
from mt2o_ext.weighting.shorthand import METHODS

PAGE = Path(__file__).with_name("weightings.md")

COMBINATORS: dict[str, Callable[[], Weighting]] = {
    "Ema": lambda: W.Ema(W.UPGrad()),
    "Every": lambda: W.Every(W.UPGrad(), 2),
    "PerSegment": lambda: W.PerSegment(W.UPGrad()),
    "Rescale": lambda: W.Rescale(W.UPGrad()),
    "Fallback": lambda: W.Fallback(W.UPGrad(), W.UPGrad()),
    "LogLosses": lambda: W.LogLosses(W.UPGrad()),
    "Relative": lambda: W.Relative(W.UPGrad()),
}

HEAD = """# Weightings

How T task gradients become one: every method of `mt2o_ext.weighting`, what it reads, what it remembers, where it is
from and where published codes (and we) differ. Written by `docs/weightings.py` from the code.

```python
from mt2o_ext import CAGrad, Ema, UPGrad, as_weighting

weights = CAGrad(c=0.4)(jacobian @ jacobian.T) # alone: float64 [T]; [K, T] for K matrices at once weighting =
Ema(UPGrad(), alpha=0.9) # combinators are weightings too weighting = as_weighting("nash-mtl") # a name is a shorthand
for the class with its defaults ```

**Notation.** T tasks, K subproblems, rows g_t of J [T, P], losses l, Q = J J' (the Gram matrix), s_t = |g_t|, C the
cosines, u the preferences (1 / T for all tasks where nobody has any), e_t the t-th unit vector. A weighting gives w;
the update is J'w.

**All methods.**

* Scale: when all losses (and their history) are multiplied by a, the update is multiplied by a^degree and keeps its
  direction, for a = 1e-8 .. 1e8. No tolerance is absolute. Methods in the units of their losses ("none") get such a
  law from `Relative`.
* A gradient or a loss that is not finite gives NaN weights for its subproblem and leaves its state as it was; nothing
  raises. The optimizers skip such a step, as they do where a formula does not exist (a loss <= 0 under a logarithm).
* A row that is zero leaves the problem and gets weight 0 (`strict=True` of `MGDA`, `EDM` and `CAGrad`: stationary, as
  their formulas say). Equal and opposite rows give finite weights; so does everything else that is finite.
* Random numbers come from one key for each step, drawn from one `torch.Generator`: every number is a hash of (key,
  purpose, subproblem, task or element). Orders are the same on every device; permuting the tasks permutes the weights.
* T x T problems are solved in float64 where the Gram matrix is, without waiting for the device. State is plain tensors
  in `state_dict`; resuming is bitwise. What has a memory as large as the gradients is listed with its shape.
* A Gram matrix squares the condition number of J: methods that invert Q (`IMTLG`, `ConFIG`, `AlignedMTL`) count
  eigenvalues above `rtol` of the largest only, by default T 2^-23, the accuracy of float32 rows.

"Reads" are passes over J beside the combination J'w that every method ends with.
"""


def cost(needs: Needs) -> str:
    if Needs.CROSS in needs:
        return "J of 2 (+ 1) mini-batches"
    parts = ["1 read, 1 write"] if Needs.ROWS in needs else []
    if needs & (Needs.GRAM | Needs.SEGMENTS | Needs.DIAGONAL):
        parts.append("1 read")
    if Needs.FEEDBACK in needs:
        parts.append("1 forward")
    return " + ".join(parts) or "none"


def state_of(weighting: Weighting) -> str:
    """The names of the state after a step."""
    weighting.bind(1, 2, 1, "cpu")
    preferences, identity = torch.full((1, 2), 0.5, dtype=torch.float64), torch.eye(2, dtype=torch.float64)[None]
    given = {"preferences": preferences, "losses": torch.ones_like(preferences), "draw": Draw.new(torch.Generator())}
    rows = [identity.clone()]
    if Needs.ROWS in weighting.needs:
        weighting.transform_(rows, WeightingContext(**given))
    weighting.weights(WeightingContext(**given, gram=identity, segments=identity[:, None], cross=identity))
    names = [name.removesuffix(".0") for name in weighting.state_dict()]
    learned = {"exp_avg", "exp_avg_sq", "adam_steps"}
    epochs = {name for name in names if name.startswith("epoch")}
    own = [f"`{name}`" for name in names if name not in learned | epochs]
    own += ["Adam"] * (learned <= set(names)) + ["`EpochMeans`"] * bool(epochs)
    return ", ".join(own) or "-"


def degree(weighting: Weighting) -> str:
    if weighting.degree is None:
        return "none"
    return "-1/3" if abs(weighting.degree + 1 / 3) < 1e-12 else f"{weighting.degree:g}"


def needs_of(weighting: Weighting) -> str:
    return ", ".join(str(flag.name).lower() for flag in weighting.needs) or "-"


def source(method: type[Weighting]) -> str:
    """The first parenthesis with a year, or an arXiv number, in the docstring."""
    found = re.search(r"\(([^()]*(?:(?:19|20)\d\d|arXiv)[^()]*)\)", " ".join(documentation(method).split()))
    return found.group(1) if found else "-"


def documentation(method: type[Weighting]) -> str:
    text = inspect.getdoc(method)
    assert text is not None
    return text


def row(method: type[Weighting], weighting: Weighting) -> str:
    cells = (needs_of(weighting), state_of(weighting), cost(weighting.needs), degree(weighting), source(method))
    return f"| `{method.__name__}` | {' | '.join(cells)} |"


def table(methods: dict[str, tuple[type[Weighting], Weighting]]) -> str:
    head = "| method | needs | state | reads | degree | source |\n|---|---|---|---|---|---|\n"
    return head + "\n".join(row(*each) for each in methods.values())


def losses_of(weighting: Weighting) -> list[str]:
    """What it takes as losses, in a sentence; nothing of one that reads none."""
    if Needs.LOSSES not in weighting.needs:
        return []
    if weighting.loss_domain is LossDomain.ANY:
        return ["Takes any losses."]
    return [f"Needs {weighting.loss_domain.value}: a step with another one is skipped, with a warning that names it."]


def section(method: type[Weighting], weighting: Weighting) -> str:
    signature = inspect.signature(method)
    plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    call = signature.replace(parameters=plain, return_annotation=inspect.Signature.empty)
    paragraphs = documentation(method).split("\n\n")
    paragraphs[1:1] = losses_of(weighting)
    return f"### {method.__name__}\n\n`{method.__name__}{call}`\n\n" + "\n\n".join(
        listed(paragraph) for paragraph in paragraphs
    )


def listed(paragraph: str) -> str:
    """Lines "name: ..." with hanging indents become items; other paragraphs are as they are, * and _ escaped."""
    paragraph = re.sub(r":func:`[\w.]*\.(\w+)`", r"`\1`", paragraph).replace("``", "`")
    if not re.match(r"[\w, ]+: ", paragraph) or not re.search(r"^[a-z_][\w, ]*: ", paragraph, re.M):
        return escaped(paragraph)
    lines = [f"* `{name}`: {rest}" if name else line for line, (name, rest) in zip(*split(paragraph), strict=True)]
    return escaped("\n".join(re.sub(r"^    ", "  ", line) for line in lines))


def split(paragraph: str) -> tuple[list[str], list[tuple[str, str]]]:
    lines = paragraph.split("\n")
    found = [re.match(r"([a-z_][\w, ]*): (.*)", line) for line in lines]
    return lines, [(match.group(1), match.group(2)) if match else ("", "") for match in found]


def escaped(text: str) -> str:
    """Markdown's < and | of formulas, outside of code."""
    parts = text.split("`")
    return "`".join(
        part.replace("<", "&lt;").replace("|", "\\|") if i % 2 == 0 else part for i, part in enumerate(parts)
    )


def page() -> str:
    methods = {name: (type(make()), make()) for name, make in METHODS.items()}
    combinators = {name: (type(make()), make()) for name, make in COMBINATORS.items()}
    sections = [section(*each) for each in methods.values()]
    around = [section(*each) for each in combinators.values()]
    names = "Names for `as_weighting`: " + ", ".join(f"`{name}`" for name in METHODS) + "."
    blocks = [HEAD.rstrip(), table(methods), names, "Around a weighting (here around `UPGrad`):", table(combinators)]
    blocks += ["## Methods", *sections, "## Around a weighting", *around]
    return "\n\n".join(blocks) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
