"""Tables of a front: in text, and as a data frame."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas

    from .front import ParetoFront

__all__ = ["as_frame", "as_text"]


def as_text(front: ParetoFront) -> str:
    """A title and a line for each subproblem: preferences, losses, metrics, and a star at the non-dominated ones."""
    on_front = front.non_dominated.tolist()
    names = [f"metric({name})" if name in front.task_names else name for name in front.metrics]
    header = ["", *(f"w({name})" for name in front.task_names), *front.task_names, *names, ""]
    table = [header]
    metrics = [column.tolist() for column in front.metrics.values()]
    for k, (preference, losses) in enumerate(zip(front.preferences.tolist(), front.losses.tolist(), strict=True)):
        values = [*losses, *(column[k] for column in metrics)]
        numbers = [*(f"{w:.3f}" for w in preference), *(f"{value:.4g}" for value in values)]
        table.append([str(k), *numbers, "*" if on_front[k] else ""])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(map(str.rjust, row, widths)).rstrip() for row in table]
    reference = "" if front.reference is None else f", reference {[round(r, 6) for r in front.reference.tolist()]}"
    title = f"ParetoFront: {sum(on_front)} of {len(front)} subproblems non-dominated (*){reference}"
    return "\n".join([title, *lines])


def as_frame(front: ParetoFront) -> pandas.DataFrame:
    """The frame of `ParetoFront.to_frame`."""
    try:
        import pandas
    except ImportError as error:
        raise ImportError('to_frame needs pandas: pip install "mt2o_ext[pareto]"') from error
    columns = {f"preference_{name}": front.preferences[:, t].numpy() for t, name in enumerate(front.task_names)}
    columns |= {f"loss_{name}": front.losses[:, t].numpy() for t, name in enumerate(front.task_names)}
    columns |= {f"metric_{name}": column.numpy() for name, column in front.metrics.items()}
    columns["non_dominated"] = front.non_dominated.numpy()
    return pandas.DataFrame(columns, index=pandas.RangeIndex(front.num_subproblems, name="subproblem"))
