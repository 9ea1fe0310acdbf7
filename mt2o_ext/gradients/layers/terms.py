"""Terms: the gradients of N losses by one parameter, in the form in which they take least work.

A term tells the Gram matrix of its N rows without being written out, if there is a cheaper way.  What is added up over
many positions is added up in float64, because it may cancel; matrices of rows go through `mt2o_ext.ops.gram_`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from ..collect import gram_of

__all__ = ["Dense", "Outer", "Shift", "Term", "gram_of_rows", "joined"]

WORKSPACE = 1 << 20
"""Numbers that a piece of a table may have: what is larger is gone through in pieces."""

NARROW = 128  # columns up to which float64 products of torch take less time than the kernel

T = TypeVar("T", bound="Term")


def gram_of_rows(rows: Tensor) -> Tensor:
    """float64 [N, N], inner products of rows [N, ...]."""
    flat = rows.reshape(len(rows), -1)
    if flat.shape[1] > NARROW:
        return gram_of(flat)
    flat = flat.double()
    return flat @ flat.T


class Term(ABC):
    """The gradients of N losses by one parameter, or what they are made of.

    Attributes:
        way: the formula in a word, for reports.

    Example:
        >>> isinstance(Dense(torch.ones(3, 2)), Term)
        True
    """

    way: str

    @abstractmethod
    def gram(self) -> Tensor:
        """float64 [N, N], the inner products."""

    @abstractmethod
    def rows(self) -> Tensor:
        """[N, size], written out."""

    @abstractmethod
    def total(self) -> Tensor:
        """[size], the sum over the N losses."""

    def joined(self: T, others: Sequence[T]) -> T | None:
        """The sum of several terms of the same class in the same form, or None if there is no such thing."""
        return None


class Dense(Term):
    """Rows as they are.

    Args:
        values: [N, ...].

    Example:
        >>> Dense(torch.tensor([[1.0, 2.0], [0.0, 3.0]])).gram()
        tensor([[5., 6.],
                [6., 9.]], dtype=torch.float64)
    """

    way = "rows"

    def __init__(self, values: Tensor) -> None:
        self._values = values.flatten(1)

    def gram(self) -> Tensor:
        return gram_of_rows(self._values)

    def rows(self) -> Tensor:
        return self._values

    def total(self) -> Tensor:
        return self._values.sum(0)


class Outer(Term):
    """Sums over positions of outer products, as of a matrix that is applied at each position: sum_l right_l left_l^T.

    Args:
        left: [N, G, L, A], what was multiplied with the parameter (N = 1: the same for all losses); or a function
            (first, end) that makes it for some of the N.
        right: [N, G, L, B], gradients of what came out.
        width: A.  The parameter has G B A elements in this order.

    Example:
        >>> left, right = torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([[1.0], [-1.0]])
        >>> Outer(left.view(2, 1, 1, 2), right.view(2, 1, 1, 1), width=2).gram()
        tensor([[ 5., -3.],
                [-3.,  9.]], dtype=torch.float64)
    """

    def __init__(self, left: Tensor | Callable[[int, int], Tensor], right: Tensor, width: int) -> None:
        self._left, self.right, self._width = left, right, width
        count, groups, positions, height = right.shape
        rows = groups * width * height * count * (positions + count / 2)
        pairs = groups * (width + height) * float(count * positions) ** 2 * (0.5 if positions == 1 else 2)
        if self._shared:
            pairs = groups * positions * (positions * width + count * height * (positions + count / 2)) * 2.0
        self._by_rows = rows < pairs

    @property
    def _shared(self) -> bool:
        return isinstance(self._left, Tensor) and len(self._left) == 1 < len(self.right)

    @property
    def way(self) -> str:  # type: ignore[override]
        """The cheaper formula: "rows", or "pairs" of positions."""
        return "rows" if self._by_rows else "pairs"

    def left(self, first: int = 0, end: int | None = None) -> Tensor:
        """The left factors of some losses."""
        end = len(self.right) if end is None else end
        if not isinstance(self._left, Tensor):
            return self._left(first, end)
        return self._left if self._shared else self._left[first:end]

    def shared_by(self, tasks: int) -> Outer:
        """The rows of ``tasks`` losses of a whole batch, from left factors [S, ...] and right ones [tasks S, ...]."""
        samples = len(self.right) // tasks
        _, groups, positions, height = self.right.shape
        right = self.right.view(tasks, samples, groups, positions, height).transpose(1, 2)
        left = self._left if isinstance(self._left, Tensor) else self._left(0, samples)
        flat = left.transpose(0, 1).reshape(1, groups, samples * positions, self._width)
        return Outer(flat, right.reshape(tasks, groups, samples * positions, height), self._width)

    @cached_property
    def gram_of_right(self) -> Tensor:
        """float64 [N, N], inner products of the right factors where there is one position."""
        return gram_of_rows(self.right)

    def gram(self) -> Tensor:
        if self._by_rows:
            return gram_of_rows(self.rows())
        _, groups, positions, _ = self.right.shape
        if self._shared:
            return self._gram_of_shared()
        if groups == positions == 1:
            return gram_of_rows(self.left()).mul_(self.gram_of_right)
        return sum((self._gram_of_pairs(group) for group in range(1, groups)), self._gram_of_pairs(0))

    def _gram_of_pairs(self, group: int) -> Tensor:
        """float64 [N, N], sum_{l, m} (left_il . left_jm) (right_il . right_jm)."""
        count, _, positions, _ = self.right.shape
        left, right = (side[:, group].reshape(count * positions, -1).double() for side in (self.left(), self.right))
        out = left.new_empty(count, count)
        step = max(1, WORKSPACE // (count * positions * positions))
        for first in range(0, count, step):
            part = slice(first * positions, min(first + step, count) * positions)
            products = (left[part] @ left.T).mul_(right[part] @ right.T)
            out[first : first + step] = products.view(-1, positions, count, positions).sum((1, 3))
        return out

    def _gram_of_shared(self) -> Tensor:
        """The same where all losses have the same left factors."""
        left, right = self.left()[0].double(), self.right.double()  # [G, L, A], [N, G, L, B]
        mixed = (left @ left.mT) @ right
        return right.flatten(1) @ mixed.flatten(1).T

    def rows(self) -> Tensor:
        count, groups, positions, height = self.right.shape
        out = self.right.new_empty(count, groups, height, self._width)
        step = count if isinstance(self._left, Tensor) else max(1, WORKSPACE // (groups * positions * self._width))
        for first in range(0, count, step):
            end = min(first + step, count)
            out[first:end] = self.right[first:end].mT @ self.left(first, end)
        return out.flatten(1)

    def total(self) -> Tensor:
        count, groups, positions, height = self.right.shape
        out = self.right.new_zeros(groups, height, self._width)
        step = count if isinstance(self._left, Tensor) else max(1, WORKSPACE // (groups * positions * self._width))
        for first in range(0, count, step):
            end = min(first + step, count)
            left, right = self.left(first, end), self.right[first:end]
            if self._shared:
                left = left.expand(end - first, -1, -1, -1)
            flat = [side.transpose(0, 1).reshape(groups, (end - first) * positions, -1) for side in (left, right)]
            out += flat[1].mT @ flat[0]
        return out.flatten()

    def joined(self, others: Sequence[Outer]) -> Outer | None:
        terms = [self, *others]
        shapes = {(term.right.shape[0], term.right.shape[1], term.right.shape[3], term._width) for term in terms}
        if len(shapes) > 1 or len({term._shared for term in terms}) > 1:
            return None
        left = torch.cat([term.left() for term in terms], 2)
        return Outer(left, torch.cat([term.right for term in terms], 2), self._width)


class Shift(Dense):
    """A bias, which is added at each position: rows are sums of the right factors of the matrix beside it.

    Args:
        outer: the term of that matrix, with G = 1.

    Example:
        >>> Shift(Outer(torch.ones(2, 1, 3, 4), torch.ones(2, 1, 3, 5), width=4)).rows()
        tensor([[3., 3., 3., 3., 3.],
                [3., 3., 3., 3., 3.]])
    """

    def __init__(self, outer: Outer) -> None:
        super().__init__(outer.right.sum((1, 2)))
        self._outer = outer

    def gram(self) -> Tensor:
        return self._outer.gram_of_right if self._outer.right.shape[2] == 1 else super().gram()


def joined(terms: Sequence[Term]) -> Term:
    """The sum of the terms of one parameter: of a layer that is used several times, or of tied layers."""
    first, *others = terms
    if not others:
        return first
    together = first.joined(others) if all(type(term) is type(first) for term in others) else None
    if together is not None:
        return together
    return Dense(sum((term.rows() for term in others), first.rows()))
