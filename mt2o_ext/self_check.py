"""A check of every kernel family against its reference, with random numbers: what ``python -m mt2o_ext`` runs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import ops
from .ops import FIELDS, NUM_CONSTANTS, Order, Rule, reference, reference_draw, reference_elements, reference_mask

__all__ = ["CHECKS", "Problem"]

K, T = 5, 3
NUMELS = (1, 17, 4097, 20_000)
UNIT = 2.0**-24  # the largest relative error of one rounding to float32


class Problem:
    """Random rows of four tensors, on one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.generator = torch.Generator().manual_seed(0)
        _, self.row, chunks = ops.plan_layout(NUMELS)
        self.chunks = torch.tensor(chunks, dtype=torch.int64, device=device)

    def rows(self, *lead: int) -> Tensor:
        """[*lead, P] in [-1, 1]: sums of n terms are off by at most n^2 / 2 roundings."""
        return (2 * torch.rand(*lead, self.row, dtype=torch.float32, generator=self.generator) - 1).to(self.device)

    def weights(self, columns: int) -> Tensor:
        """float64 [K, columns], rows sum to one."""
        weights = torch.rand(K, columns, generator=self.generator, dtype=torch.float64)
        return (weights / weights.sum(1, keepdim=True)).to(self.device)


def wide(tensor: Tensor) -> Tensor:
    """A copy in float64."""
    return tensor.to(torch.float64, copy=True)


def largest(difference: Tensor) -> float:
    """The largest absolute value; infinite where there is a NaN."""
    return difference.abs().nan_to_num(nan=torch.inf).max().item()


# Each returns the error against the reference in float64, and the one that roundings explain.
def check_combine(p: Problem) -> tuple[float, float]:
    """Checks `ops.combine_`."""
    grads, weights, out = p.rows(K, T), p.weights(T), torch.zeros(K, p.row, dtype=torch.float32, device=p.device)
    expected = wide(out)
    ops.combine_(out, grads, weights, p.chunks)
    reference.combine_(expected, wide(grads), weights, p.chunks)
    return largest(out - expected), (T + 1) * UNIT


def gram_error(p: Problem, rows: Tensor, others: Tensor | None, **kind: bool) -> float:
    """The largest error of an inner product, relative to the lengths of its rows."""
    sums = K * (K + 1) // 2 if others is None else K * K
    out = torch.zeros(1, len(NUMELS), K, K, dtype=torch.float64, device=p.device)
    partials = torch.zeros(1, len(p.chunks), sums, dtype=torch.float64, device=p.device)
    expected = out.clone()
    ops.gram_(out, partials, rows, others, p.chunks, None, **kind)
    reference.gram_(expected, partials, wide(rows), None if others is None else wide(others), p.chunks, None, **kind)
    lengths = [gram_lengths(p, rows, **kind), gram_lengths(p, rows if others is None else others, **kind)]
    return largest((out - expected) / (lengths[0][..., :, None] * lengths[1][..., None, :]))


def gram_lengths(p: Problem, rows: Tensor, **kind: bool) -> Tensor:
    """float64 [1, S, K], the lengths of the rows in each tensor."""
    squares = torch.zeros(1, len(NUMELS), K, dtype=torch.float64, device=p.device)
    partials = torch.zeros(1, len(p.chunks), K, dtype=torch.float64, device=p.device)
    reference.gram_(squares, partials, wide(rows), None, p.chunks, None, diagonal=True, **kind)
    return squares.sqrt()


def check_gram(p: Problem) -> tuple[float, float]:
    """Checks `ops.gram_`, centred and of two sets of rows."""
    rows, others = p.rows(1, K), p.rows(1, K)
    return max(gram_error(p, rows, None, centre=True), gram_error(p, rows, others)), 16 * UNIT


def check_transfer(p: Problem) -> tuple[float, float]:
    """Checks `ops.transfer_`."""
    theta, mix = p.rows(K), p.weights(K)
    expected = wide(theta)
    ops.transfer_(theta, mix, p.chunks)
    reference.transfer_(expected, mix, p.chunks)
    return largest(theta - expected), 4 * (K + 4) * UNIT


def check_priority(p: Problem) -> tuple[float, float]:
    """Checks `ops.priority_`."""
    offsets, _, _ = ops.plan_layout(NUMELS)
    shapes = ((1, 1, 1), (1, 17, 1), (1, 17, 241), (20, 10, 100))  # runs, channels, length
    records = [
        ops.PriorityRecord(layer, 0, channels, offset, length, runs)
        for layer, (offset, (runs, channels, length)) in enumerate(zip(offsets, shapes, strict=True))
    ]
    records_table, chunks = (table.to(p.device) for table in ops.plan_priority(records))
    owners = (torch.arange(17, dtype=torch.int64) % (T + 1) - 1).to(p.device)  # one channel in four has none
    grads, out = p.rows(T), torch.zeros(p.row, dtype=torch.float32, device=p.device)
    dots = torch.zeros(len(chunks), T, T, dtype=torch.float64, device=p.device)
    coefficients = torch.zeros(len(records), T, dtype=torch.float64, device=p.device)
    expected = wide(out)
    ops.priority_(out, dots, coefficients, grads, owners, records_table, chunks)
    reference.priority_(expected, dots, coefficients, wide(grads), owners, records_table, chunks)
    return largest(out - expected), (T + 3) * (T + float(coefficients.max())) * UNIT


def check_finite(p: Problem) -> tuple[float, float]:
    """Checks `ops.finite_`."""
    grads, found = p.rows(K, T), torch.zeros(K, dtype=torch.float32, device=p.device)
    grads[1, 0, 0], grads[3, T - 1, p.chunks[-1, 2] - 1] = torch.inf, torch.nan
    ops.finite_(found, grads, p.chunks)
    return largest(found - torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0], dtype=torch.float32, device=p.device)), 0.0


def check_track(p: Problem) -> tuple[float, float]:
    """Checks `ops.track_`."""
    grads, memory, keep, fresh = p.rows(K, T), p.rows(K, T), p.weights(T), p.weights(T)
    expected, finite = wide(memory), torch.arange(K, dtype=torch.int64, device=p.device) != 1
    reference_elements.track_(wide(grads), expected, keep, fresh, finite, p.chunks, shown=False)
    ops.track_(grads, memory, keep, fresh, finite, p.chunks, shown=False)
    return largest(memory - expected), 6 * UNIT


def check_feed(p: Problem) -> tuple[float, float]:
    """Checks `ops.feed_`."""
    grads, last, memory, weights = p.rows(K, T), p.rows(K), p.rows(K, T), p.weights(T)
    factors = p.weights(1)[:, 0].contiguous(), p.weights(1)[:, 0].contiguous()
    finite = torch.ones(K, dtype=torch.bool, device=p.device)
    expected, expected_last = wide(grads), wide(last)
    rest = *factors, finite, p.chunks
    reference_elements.feed_(expected, expected_last, wide(memory), weights, *rest, beta=0.5)
    ops.feed_(grads, last, memory, weights, *rest, beta=0.5)
    return max(largest(grads - expected), largest(last - expected_last)), 4 * (T + 6) * UNIT


def check_excess(p: Problem) -> tuple[float, float]:
    """Checks `ops.excess_`."""
    grads, squares, segments = p.rows(K, T), p.rows(K, T).abs(), len(NUMELS)
    finite = torch.ones(K, dtype=torch.bool, device=p.device)
    out = torch.zeros(K, segments, T, dtype=torch.float64, device=p.device)
    partials = torch.zeros(K, len(p.chunks), T, dtype=torch.float64, device=p.device)
    expected, expected_squares = out.clone(), wide(squares)
    reference_elements.excess_(expected, partials, expected_squares, wide(grads), finite, p.chunks)
    ops.excess_(out, partials, squares, grads, finite, p.chunks)
    return max(largest((out - expected) / expected.clamp_min(1)), largest(squares - expected_squares)), 2 * UNIT


def check_drop_signs(p: Problem) -> tuple[float, float]:
    """Checks `ops.drop_signs_`."""
    grads, key = p.rows(K, T), torch.tensor(7, dtype=torch.int64, device=p.device)
    finite = torch.ones(K, dtype=torch.bool, device=p.device)
    expected = wide(grads)
    reference_elements.drop_signs_(expected, key, finite, p.chunks, stream=0, leak=0.5)
    ops.drop_signs_(grads, key, finite, p.chunks, stream=0, leak=0.5)
    return largest(grads - expected), UNIT


def check_draw(p: Problem) -> tuple[float, float]:
    """Checks `ops.draw_`, whose every bit counts."""
    ids = torch.arange(1000, dtype=torch.int64, device=p.device)
    numbers, expected = torch.zeros_like(ids), torch.zeros_like(ids)
    key = torch.tensor(-7, dtype=torch.int64, device=p.device)
    ops.draw_(numbers, key, [ids], stream=1)
    reference_draw.draw_(expected, key, [ids], stream=1)
    return float((numbers != expected).sum()), 0.0


def check_judge(p: Problem) -> tuple[float, float]:
    """Checks `ops.judge_`: sums of Gram matrices, and a row that is not finite."""
    grams = p.rows(K, T).double()[..., :T].unsqueeze(1).repeat(1, 3, 1, 1).contiguous()
    grams[1, 2, 0, 0] = torch.inf
    found = torch.zeros(K, dtype=torch.float32, device=p.device)
    flags = torch.zeros(2, K, dtype=torch.bool, device=p.device)
    sums, filled = torch.zeros_like(grams[:, 0]), torch.zeros_like(grams[:, 0])
    ops.judge_(found, flags, None, sums, filled, None, None, (), grams)
    expected = 3 * grams[:, 0]
    expected[1] = torch.eye(T, dtype=torch.float64, device=p.device)
    right = flags.tolist() == [[k != 1 for k in range(K)]] * 2
    return largest(filled - expected) if right else float("inf"), 1e-14


def check_settle(p: Problem) -> tuple[float, float]:
    """Checks `ops.settle_`: one row has a weight that is too large."""
    raw = p.weights(T).clone()
    raw[1, 0] = torch.inf
    weights, applied, refusals = torch.zeros_like(raw), torch.zeros_like(raw), raw.new_zeros(len(raw), 3)
    found = torch.zeros(len(raw), dtype=torch.float32, device=p.device)
    flags = torch.zeros(2, len(raw), dtype=torch.bool, device=p.device)
    ops.settle_(weights, applied, flags, refusals, found, None, raw, tasks=T, limit=1e9, offset=2)
    right = found.tolist() == [0.0, 4.0, *[0.0] * (len(raw) - 2)] and bool(weights[1].isnan().all())
    expected = torch.where(flags[0].unsqueeze(1), raw, 0.0)
    return largest(applied - expected) if right else float("inf"), 0.0


def check_count(p: Problem) -> tuple[float, float]:
    """Checks `ops.count_`."""
    counts = torch.zeros(K, dtype=torch.int64, device=p.device)
    found = (torch.arange(K, dtype=torch.int64, device=p.device) == 1).float()
    ops.count_(counts, None, found)
    return largest(counts.double() - found.double()), 0.0


def check_step(p: Problem) -> tuple[float, float]:
    """Checks `ops.step_` with Adam's rule and a transfer."""
    segments = torch.zeros(len(NUMELS), len(FIELDS), dtype=torch.float64, device=p.device)
    for name, value in {"lr": 0.1, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "transfer": 1.0}.items():
        segments[:, FIELDS.index(name)] = value
    weights, mix = p.weights(T), p.weights(K)

    def run(step_: Callable[..., None], theta: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, grads: Tensor) -> Tensor:
        step = torch.full((K, len(NUMELS)), 3.0, dtype=torch.float32, device=p.device)
        constants = torch.zeros(K, len(NUMELS), NUM_CONSTANTS, dtype=torch.float64, device=p.device)
        step_(
            theta, exp_avg, exp_avg_sq, None, None, None, step, constants, grads, weights, mix, segments, p.chunks,
            None, None, None, rule=Rule.ADAM, order=Order.CONSENSUS,
        )  # fmt: skip
        return theta

    rows = p.rows(K), p.rows(K), 1 + p.rows(K).abs(), p.rows(K, T)
    expected = run(reference.step_, *map(wide, rows))
    return largest(run(ops.step_, *rows) - expected), (4 * (K + 4) + T + 12) * UNIT


def packed(p: Problem, tasks: int) -> Tensor:
    """Masks [tasks, row / 8] that lack two columns of three."""
    columns = torch.arange(p.row, dtype=torch.int64, device=p.device).expand(tasks, -1)
    ones = (
        ((columns + torch.arange(tasks, dtype=torch.int64, device=p.device)[:, None]) % 3 == 0)
        .unflatten(1, (-1, 8))
        .long()
    )
    return (ones << torch.arange(8, dtype=torch.int64, device=p.device)).sum(2).to(torch.uint8)


def check_mask(p: Problem) -> tuple[float, float]:
    """Checks `ops.mask_`."""
    values, masks = p.rows(1), packed(p, 1)
    out, expected = torch.zeros_like(values), torch.zeros_like(values)
    ops.mask_(out, values, masks, None, p.chunks)
    reference_mask.mask_(expected, values, masks, None, p.chunks)
    return largest(out - expected), 0.0


def check_harmony(p: Problem) -> tuple[float, float]:
    """Checks `ops.harmony_`."""
    grads, values, masks = p.rows(1, T), p.rows(1), packed(p, T)
    factors = torch.ones(T, dtype=torch.float64, device=p.device)
    scores = torch.zeros(T, p.row, dtype=torch.float32, device=p.device)
    expected = wide(scores)
    ops.harmony_(
        scores, grads, values, factors, masks, None, p.chunks, gamma=2.0, magnitude=False, dense=True
    )  # fmt: skip
    reference_mask.harmony_(
        expected, wide(grads), wide(values), factors, masks, None, p.chunks, gamma=2.0, magnitude=False, dense=True
    )
    return largest(scores - expected), 3 * (T + 6) * UNIT


def check_exchange(p: Problem) -> tuple[float, float]:
    """Checks `ops.exchange_`."""
    masks, scores = packed(p, T), p.rows(T)
    counts = torch.zeros(T, len(p.chunks), ops.EXCHANGE_BINS, dtype=torch.int32, device=p.device)
    state = torch.zeros(T, ops.EXCHANGE_STATE, dtype=torch.int64, device=p.device)
    expected = masks.clone()
    ops.exchange_(masks, counts, state, scores, p.chunks, amount=100)
    reference_mask.exchange_(expected, counts, state, scores, p.chunks, amount=100)
    return largest(masks.double() - expected.double()), 0.0


def times(matrix: Tensor, vector: Tensor) -> Tensor:
    """Products [K, T] of matrices [K, T, T] and vectors [K, T]."""
    return (matrix @ vector[..., None])[..., 0]


def check_solve(p: Problem) -> tuple[float, float]:
    """Checks three solvers by certificates.

    Inner products with the rows are equal (least norm), one over the weights (barrier), and not negative (cone).
    """
    rows = p.rows(K, T).double()[..., : 4 * T]
    rows[:, -1] -= rows[:, 0]  # in conflict
    gram = rows @ rows.mT
    gram = gram.tril() + gram.tril(-1).mT
    unit = gram.diagonal(dim1=-2, dim2=-1).mean(1, keepdim=True)
    w, x, residual = (torch.zeros(K, *shape, dtype=torch.float64, device=p.device) for shape in ((T,), (T,), ()))
    v, ones = torch.zeros_like(w[:, None]), torch.ones_like(w[:, None])
    ops.minimum_norm_(w, gram)
    ops.power_barrier_(x, residual, gram, ones[:, 0].contiguous(), power=1.0)
    ops.dual_cone_(v, gram, ones)
    errors = [
        w.sum(1) - 1,
        ((w * times(gram, w)).sum(1, keepdim=True) - times(gram, w)).clamp_min(0) / unit,
        x * times(gram, x) - 1,
        (ones - v).clamp_min(0),
        -times(gram, v[:, 0]).clamp_max(0) / unit,
    ]
    return max(map(largest, errors)), 1e-12


CHECKS: dict[str, Callable[[Problem], tuple[float, float]]] = {
    "combine": check_combine,
    "gram": check_gram,
    "priority": check_priority,
    "transfer": check_transfer,
    "finite": check_finite,
    "track": check_track,
    "feed": check_feed,
    "excess": check_excess,
    "drop_signs": check_drop_signs,
    "draw": check_draw,
    "judge": check_judge,
    "settle": check_settle,
    "count": check_count,
    "step": check_step,
    "mask": check_mask,
    "harmony": check_harmony,
    "exchange": check_exchange,
    "solve": check_solve,
}
