"""Writes ``base_rules.md`` beside itself from the base rules themselves: their options, state, sources and docstrings.

Run ``python docs/base_rules.py`` after a change of a rule: a test compares the page with what this program gives.
"""

from __future__ import annotations

import inspect
from pathlib import Path

from mt2o_ext.base import BASE_RULES, BaseRule

PAGE = Path(__file__).with_name("base_rules.md")

HEAD = """# Base rules

A base rule is the update that a model, or each of K subproblems, makes with its combined gradient. Every optimizer of
this package takes one as `base=`: an instance of `mt2o_ext.base`, or its name with the default options. Options may
differ between parameter groups. `docs/base_rules.py` writes this page.

```python
import torch
from mt2o_ext import WeightedFused
from mt2o_ext.base import Lion

model = torch.nn.Linear(3, 2)
groups = [{"params": [model.weight], "weight_decay": 0.1}, {"params": [model.bias]}]
optimizer = WeightedFused(groups, num_tasks=2, base=Lion(betas=(0.95, 0.98)))  # or base="lion"
```

* **`lr` is an option of the optimizer**; where it is not given, it is the one in the column `lr`, that of the rule's
  authors or of torch.optim. In Python it is an attribute of the rule, such as `Lion.lr`.
* **State** lists what `optimizer.state[p]` shows of a parameter, with torch.optim's names and shapes; in brackets what
  only some options need. With K > 1 subproblems each tensor has a leading dimension K, and every rule shows `step`.
* **Precision.** Moments are float32, or float64 for float64 parameters; of 16-bit parameters there are float32
  masters.
"""


def options_of(rule: BaseRule) -> str:
    return ", ".join(f"`{name}={value!r}`" for name, value in rule.defaults().items())


def state_of(rule: BaseRule) -> str:
    always = [f"`{key}`" for key in rule.needed]
    sometimes = [f"`{key}`" for key in rule.state_keys() if key not in rule.needed]
    return ", ".join(always + [f"({key})" for key in sometimes])


def page() -> str:
    lines = [HEAD, "| name | options | `lr` | state | from |", "|---|---|---|---|---|"]
    for name, kind in BASE_RULES.items():
        rule = kind()
        source = f"`{kind.source}`" if kind.source.startswith("torch.") else kind.source
        lines.append(f'| `"{name}"` | {options_of(rule)} | {kind.lr:g} | {state_of(rule)} | {source} |')
    for kind in BASE_RULES.values():
        text = inspect.cleandoc(kind.__doc__ or "").replace("``", "`")
        lines += ["", f"## {kind.__name__}", "", text]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
