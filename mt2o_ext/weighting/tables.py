"""Tables that weightings are given: their shapes, and checks that they fit together."""

from __future__ import annotations

from torch import Tensor

from .context import Needs, WeightingContext

_FIELDS = {
    Needs.LOSSES: "losses",
    Needs.GRAM: "gram",
    Needs.DIAGONAL: "gram",
    Needs.SEGMENTS: "segments",
    Needs.CROSS: "cross",
    Needs.DRAWS: "draw",
}


def check_fields(name: str, context: WeightingContext, needs: Needs, rows: int, tasks: int) -> None:
    """Raise ValueError unless the context has what is needed, for K = ``rows`` subproblems and T = ``tasks`` tasks."""
    for flag, field in _FIELDS.items():
        value = getattr(context, field)
        if flag in needs and value is None and (context.measured is None or flag in Needs.CROSS | Needs.DRAWS):
            raise ValueError(f"{name} expected context.{field}, got None: pass what Weighting.needs names")
        if isinstance(value, Tensor) and (value.shape[0] != rows or value.shape[-1] != tasks):
            raise ValueError(
                f"{name} expected {field} of {rows} subproblems and {tasks} tasks, got {tuple(value.shape)}: call bind "
                "again"
            )


def along(mask: Tensor, table: Tensor) -> Tensor:
    """mask [K] in the shape that broadcasts with table [K, ...]."""
    return mask.view(-1, *[1] * (table.ndim - 1))


def batched_tables(tables: dict[str, tuple[Tensor | None, int]]) -> tuple[bool, dict[str, Tensor]]:
    """Return whether the tables came with a dimension K, and those that are there, float64 and with one.

    Args:
        tables: by name, each (or None) with the number of its dimensions without K.

    Raises:
        TypeError, ValueError: where they do not fit together.
    """
    given = {name: (table, dims) for name, (table, dims) in tables.items() if table is not None}
    if not given:
        raise ValueError("expected at least one of gram, losses and preferences, got none: give what the method reads")
    for name, (table, _) in given.items():
        if not isinstance(table, Tensor) or not table.is_floating_point():
            got = table.dtype if isinstance(table, Tensor) else type(table).__name__
            raise TypeError(f"expected {name} as a floating-point tensor, got {got}: convert it")
    extra = {name: table.ndim - dims for name, (table, dims) in given.items()}
    if not all(0 <= more <= 1 for more in extra.values()):
        shapes = {name: tuple(table.shape) for name, (table, _) in given.items()}
        raise ValueError(
            f"expected gram [T, T] or [K, T, T], losses and preferences [T] or [K, T], got {shapes}: give them in "
            "these shapes"
        )
    for name, (table, dims) in given.items():
        if dims > 1 and table.shape[-1] != table.shape[-2]:
            raise ValueError(
                f"expected {name} [T, T], got {list(table.shape)}: of gradients J [T, P] pass the Gram matrix J @ J.T"
            )
    batched = max(extra.values()) == 1
    num_rows = next((len(table) for name, (table, _) in given.items() if extra[name]), 1)
    wide = {
        name: table.detach().double() if extra[name] else table.detach().double().expand(num_rows, *table.shape)
        for name, (table, _) in given.items()
    }
    ends = {(len(table), table.shape[-1]) for table in wide.values()}
    if len(ends) > 1:
        shapes = {name: tuple(table.shape) for name, table in wide.items()}
        raise ValueError(f"expected one number of subproblems and of tasks, got {shapes}: make them agree")
    return batched, wide
