"""Writes ``weightings.md`` beside itself from the weightings themselves: their needs, states, laws and docstrings.

Run ``python docs/weightings.py`` after a change of a docstring: one test compares the page with what this program
gives, others parse the page as a web site would and run its example.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from pathlib import Path
from types import ModuleType

import torch

from mt2o_ext import contrib
from mt2o_ext.weighting import Draw, LossDomain, Needs, UPGrad, Weighting, WeightingContext
from mt2o_ext.weighting.registry import register, register_around

PAGE = Path(__file__).with_name("weightings.md")

# What each flag of `Needs` asks for, as the page says it.
NEEDS = {
    Needs.LOSSES: "the values of the T losses",
    Needs.GRAM: "the Gram matrix Q",
    Needs.SEGMENTS: "one Gram matrix for each parameter tensor of the model",
    Needs.DIAGONAL: "only the diagonal of Q, the squared lengths of the gradients",
    Needs.CROSS: "inner products of the gradients of one mini-batch with those of another; no optimizer gives these, "
    "so call the method yourself, with `cross=`",
    Needs.ROWS: "the gradients themselves, which it changes before they are combined",
    Needs.FEEDBACK: "the losses of the same mini-batch once more, after the step: `WeightedFused.step(closure)` asks "
    "for them itself, all else has to call `feedback(new_losses)` of the optimizer, or of `WeightedBackward`, after "
    "each step, and is warned once where it does not",
    Needs.EPOCHS: "the number of epochs, which only you know: call `epoch_end()` of the optimizer, or of "
    "`WeightedBackward`, at the end of each; if there was none in 100 steps, there is one warning",
    Needs.STEPS: "the number of steps",
    Needs.DRAWS: "random numbers",
    Needs.POINTS: "that the losses are not weighed yet, and belong to the point of a front that the preferences name: "
    '`MT2OFused(..., scalarization=None)`, where the points are those of the step with `front="vertices"` and the '
    "preferences of the subproblems without; of one model the point is its preferences",
}

HEAD = """# Weightings

A weighting decides how the gradients of T tasks become one update. Each method of `mt2o_ext.weighting` and
`mt2o_ext.contrib` has a section here: its formula, its settings, what it reads and remembers, the paper it is from, and
where published implementations differ from one another or from ours. `docs/weightings.py` writes this page from the
docstrings.

```python
import torch
from mt2o_ext.weighting import CAGrad, Ema, UPGrad, as_weighting

jacobian = torch.tensor([[1.0, 0.0, 2.0], [-2.0, 1.0, 0.0]])  # the gradients of T = 2 tasks, one in each row
weights = CAGrad(c=0.4)(jacobian @ jacobian.T)  # from their Gram matrix [T, T]; the answer is float64 [T]
update = weights.float() @ jacobian             # the combined gradient

weighting = Ema(UPGrad(), decay=0.9)            # some classes go around another weighting, here a running average
weighting = as_weighting("nash-mtl")            # a name stands for the class with its default settings
```

An optimizer takes the instance or the name: `WeightedFused(..., weighting=Ema(UPGrad()))`, `weighting="nash-mtl"`.

**Notation.** There are T tasks and K subproblems (K = 1 for one model). J [T, P] holds the gradient g_t of task t in
row t, Q = J J' is the Gram matrix of all inner products, s_t = |g_t| the length of a gradient, C the matrix of cosines,
l the losses, u the preferences (1 / T for each task unless you give others), e_t the t-th unit vector. A weighting
gives T numbers w; the update is their combination J'w = sum_t w_t g_t.

**What holds for all methods.**

* **Scale.** If you multiply all losses, past and present, by the same factor a, the update is multiplied by a^degree
  and keeps its direction, for a from 1e-8 to 1e8; "homogeneous" below means degree 1. No tolerance is an absolute
  number. Methods whose formula depends on the unit of the losses (degree "none") have this property inside of
  `Relative`, which measures losses against their first values.
* **Infinite or NaN** gradients and losses give NaN weights for their subproblem and leave the weighting's state as it
  was. Nothing raises: the optimizers skip such a step. They also skip it where a formula does not exist, such as the
  logarithm of a loss <= 0.
* **A gradient that is zero** is left out of the problem and gets weight 0. (With `strict=True`, `MGDA`, `EDM` and
  `CAGrad` take such a point for stationary, as their formulas say: all weights are 0.) Equal gradients and opposite
  ones give finite weights.
* **Random numbers.** Each step takes one key from a `torch.Generator`, and every random number is a hash of that key,
  its purpose, the subproblem and the task or element. So they are the same on every device, and another order of the
  tasks gives the same weights in that order.
* **Tasks without data in a step** (`WeightingContext.present`) are as if they did not exist: the method runs on the
  rest of Q, l and u, with u summing to 1 again, and its rows of state for them stay as they are, bit for bit. Counts
  that averages and corrections go by (Adam's steps, steps of an epoch, k of a decay) are each task's own. So a task
  that comes late is new: its first loss is the one with which it first comes. Weights that are kept for several steps
  (`NashMTL(every=...)`, `Every`) are a task's last ones, and those that are learned on the simplex (`MoCo`) are shared
  out anew among the tasks that are there, whose sum stays. There is no method that needs all tasks.
* **Where it runs.** Problems of size T x T are solved in float64 on the device that holds the Gram matrix, and the host
  never waits for the result. The state is plain tensors in the optimizer's `state_dict`; a resumed run has the same
  bits as one that was never stopped. State that is as large as the gradients is listed with its shape.
* **Nearly dependent gradients.** A Gram matrix squares the condition number of J. Methods that invert Q (`IMTLG`,
  `ConFIG`, `AlignedMTL`) therefore use only the eigenvalues above `rtol` times the largest one, by default
  T 2^-23: that is how accurately float32 gradients determine them.

**Columns of the tables.**

* `name` is what the optimizers and `as_weighting` take for the class with its default settings.
* `needs` lists what the method looks at or asks for:
{needs}
* `state` names the tensors that the method keeps from step to step. "Adam" are the moments of the small Adam optimizer
  that learns its weights, `EpochMeans` the mean losses of the last two epochs.
* `reads` counts the passes over J, in addition to the combination J'w that every method ends with.
* `degree` is the exponent under **Scale**.
"""


def head() -> str:
    """HEAD with an item for each flag of Needs."""
    flags = [flag for flag in Needs if flag is not Needs.NOTHING]
    items = [wrapped(f"`{str(flag.name).lower()}`: {NEEDS[flag]}") for flag in flags]
    return HEAD.rstrip().replace("{needs}", ";\n".join(items) + ".")


def wrapped(item: str) -> str:
    return textwrap.fill(item, 120, initial_indent="  * ", subsequent_indent="    ", break_on_hyphens=False)


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


def row(name: str, method: type[Weighting], weighting: Weighting) -> str:
    cells = (
        name,
        needs_of(weighting),
        state_of(weighting),
        cost(weighting.needs),
        degree(weighting),
        source(method),
    )
    return f"| `{method.__name__}` | {' | '.join(cells)} |"


def table(methods: dict[str, tuple[type[Weighting], Weighting]], *, named: bool = True) -> str:
    head = "| method | name | needs | state | reads | degree | source |\n|---|---|---|---|---|---|---|\n"
    return head + "\n".join(row(f"`{name}`" if named else "-", *each) for name, each in methods.items())


def losses_of(weighting: Weighting) -> list[str]:
    """What it takes as losses, in a sentence; nothing of one that reads none."""
    if Needs.LOSSES not in weighting.needs:
        return []
    if weighting.loss_domain is LossDomain.ANY:
        return ["Takes any losses."]
    return [f"Needs {weighting.loss_domain.value}: a step with another one is skipped, with a warning that names it."]


def section(method: type[Weighting], weighting: Weighting) -> str:
    """Heading, call, and the docstring with its sections as a page has them."""
    signature = inspect.signature(method)
    plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    call = signature.replace(parameters=plain, return_annotation=inspect.Signature.empty)
    prose, sections = parsed(documentation(method))
    blocks = [f"### {method.__name__}", f"`{method.__name__}{call}`", *map(escaped, prose)]
    blocks[3:3] = losses_of(weighting)
    if "Args" in sections:
        blocks.append("\n".join(escaped(item) for item in items(sections["Args"])))
    for title in ("State", "Raises"):
        if title in sections:
            blocks.append(escaped(f"{title}: {' '.join(sections[title].split())}"))
    if "Example" in sections:
        blocks.append(f"```pycon\n{sections['Example'].rstrip()}\n```")
    return "\n\n".join(blocks)


def parsed(text: str) -> tuple[list[str], dict[str, str]]:
    """The paragraphs of a docstring and its sections, without their indent."""
    prose, sections = [], {}
    for paragraph in text.replace("``", "`").split("\n\n"):
        paragraph = re.sub(r":func:`[\w.]*\.(\w+)`", r"`\1`", paragraph)
        title = re.match(r"(Args|State|Raises|Example):\n", paragraph)
        if title:
            sections[title[1]] = textwrap.dedent(paragraph[title.end() :])
        else:
            prose.append(paragraph)
    return prose, sections


def items(entries: str) -> list[str]:
    """Of "name: text" with hanging indents, an item of a list for each."""
    found = re.split(r"^(?=\S)", entries, flags=re.M)[1:]
    named = [re.sub(r"^([\w, ]+): ", r"`\1`: ", " ".join(entry.split())) for entry in found]
    return [
        textwrap.fill(entry, 120, initial_indent="* ", subsequent_indent="  ", break_long_words=False,
                      break_on_hyphens=False)
        for entry in named
    ]  # fmt: skip


def escaped(text: str) -> str:
    """Markdown's < and | of formulas, outside of code."""
    parts = text.split("`")
    return "`".join(
        part.replace("<", "&lt;").replace("|", "\\|") if i % 2 == 0 else part for i, part in enumerate(parts)
    )


def example(method: type[Weighting]) -> Weighting:
    """One with its defaults; around `UPGrad`, and with 2 for a number, where it has none."""
    required = [p for p in inspect.signature(method).parameters.values() if p.default is p.empty]
    return method(*(UPGrad() if "Weighting" in p.annotation else 2 for p in required))


def page() -> str:
    methods, around, unproven = (
        {name: (method, example(method)) for name, method in registry.items()}
        for registry in (register, register_around, contrib.register)
    )
    blocks = [head(), table(methods), "Around a weighting (here around `UPGrad`):", table(around)]
    blocks += ["## Methods", *(section(*each) for each in methods.values())]
    blocks += ["## Around a weighting", *(section(*each) for each in around.values())]
    blocks += ["## Not validated: mt2o_ext.contrib", escaped(paragraphs_of(contrib)), table(unproven, named=False)]
    blocks += [section(*each) for each in unproven.values()]
    return "\n\n".join(blocks) + "\n"


def paragraphs_of(module: ModuleType) -> str:
    assert module.__doc__ is not None
    return module.__doc__.strip().replace("``", "`")


if __name__ == "__main__":
    PAGE.write_text(page())
