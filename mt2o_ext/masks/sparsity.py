"""The number of elements that a mask has in each tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..checks import check_real

__all__ = ["erk_counts"]


def erk_counts(shapes: Sequence[Sequence[int]], density: float) -> list[int]:
    """Return the elements that a mask keeps of each tensor, by the Erdos-Renyi kernel rule (Evci et al., ICML 2020).

    The density of a tensor is in proportion to the sum of its sizes over their product, so that large tensors are
    thinner than small ones; a tensor that would get more than all of its elements keeps all, and the others share what
    is left. Together they are round(density n) of all n elements, exactly: what rounding leaves over goes to the
    tensors with the largest remainders.

    Args:
        shapes: of the tensors.
        density: in [0, 1], of all elements together.

    Raises:
        TypeError: for a density that is no number.
        ValueError: for a density out of range, no tensor, or an empty one.

    Example:
        >>> erk_counts([(100, 50), (100,), (10, 100), (10,)], density=0.4)
        [1347, 100, 987, 10]
    """
    check_real("density", density, maximum=1.0)
    if not shapes:
        raise ValueError("expected at least one tensor, got none: pass the parameters that have masks")
    sizes = [math.prod(shape) for shape in shapes]
    if 0 in sizes:
        raise ValueError(f"expected tensors with elements, got the shapes {[list(s) for s in shapes]}: leave one out")
    budget = round(density * sum(sizes))
    shares = [float(sum(shape)) if len(shape) > 0 else 1.0 for shape in shapes]  # density times elements, up to scale
    thin, left, scale = list(range(len(sizes))), budget, 0.0
    while thin:
        scale = left / sum(shares[i] for i in thin)
        full = [i for i in thin if scale * shares[i] > sizes[i]]
        if not full:
            break
        left -= sum(sizes[i] for i in full)
        thin = [i for i in thin if i not in full]
    counts = list(sizes)
    for i in thin:
        counts[i] = math.floor(scale * shares[i])
    over = budget - sum(counts)
    for i in sorted(thin, key=lambda i: (counts[i] - scale * shares[i], i))[:over]:
        counts[i] += 1
    return counts
