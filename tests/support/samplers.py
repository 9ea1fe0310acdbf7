"""Random problems for the operators.

Every matrix has NaN between its segments ("padding"): a kernel that reads there shows it in its result, one that writes
there is found by ``Layout.padding_kept``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from mt2o_ext.ops import FIELDS, MOMENTS, NUM_CONSTANTS, SQUARES, Order, Rule, plan_layout, reference
from support.backends import Backend

FLOATS = (torch.float32, torch.float64)
HALVES = (torch.bfloat16, torch.float16)
ROWS = (1, 2, 3, 4, 5, 8, 16, 17)
TASKS = (1, 2, 3, 8)
# Around a group of sixteen columns, several chunks, more columns than one thread takes alone, and tensors side by side
# (one of them empty).
LAYOUTS = ((0,), (1,), (3,), (15,), (16,), (17,), (4097,), (9000,), (3, 0, 17, 4097, 1, 16))


def rows_and_tasks(numels: Sequence[int]) -> list[tuple[int, int]]:
    """(K, T) to try on a layout; fewer on a long one."""
    if sum(numels) > 100:
        return [(1, 1), (5, 2), (17, 3), (4, 8)]
    return [*zip(ROWS, 2 * TASKS, strict=True), *((3, tasks) for tasks in TASKS)]


def rounding(dtype: torch.dtype) -> float:
    """The largest relative error of rounding to this dtype."""
    return torch.finfo(dtype).eps / 2


def unit(dtype: torch.dtype) -> float:
    """The unit of allowed errors: a rounding in the arithmetic of a kernel for this dtype, and one of the oracle."""
    return rounding(torch.float64 if dtype == torch.float64 else torch.float32) + rounding(torch.float64)


def widened(tensor: Tensor) -> Tensor:
    """A copy in float64 (``double()`` of a float64 tensor is the tensor itself)."""
    return tensor.to(torch.float64, copy=True)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal as bits: NaN equals the same NaN, and -0 is not 0."""
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(integer), b.contiguous().view(integer))


def same_numbers(a: Tensor, b: Tensor) -> bool:
    """Equal as bits, but that any NaN equals any other: who computes a NaN chooses its bits (NVIDIA's GPUs give one for
    all, other processors that of an operand)."""
    if a.dtype != b.dtype or a.shape != b.shape or not torch.equal(a.isnan(), b.isnan()):
        return False
    return same_bits(*(torch.where(t.isnan(), torch.zeros_like(t), t) for t in (a, b)))


def assert_within(actual: Tensor, expected: Tensor, allowed: Tensor | float) -> None:
    """|actual - expected| <= allowed everywhere; NaN is never within."""
    error = (actual.double() - expected.double()).abs()
    wrong = ~(error <= allowed)
    if bool(wrong.any()):
        first = tuple(wrong.nonzero()[0].tolist())
        limit = torch.as_tensor(allowed).expand_as(error)
        raise AssertionError(
            f"{int(wrong.sum())} of {wrong.numel()} differ, first at {first}: {actual[first].item()!r}, not "
            f"{expected[first].item()!r}, off by {error[first].item():.3g}, allowed {limit[first].item():.3g}"
        )


class Layout:
    """Tensors of these sizes in one row."""

    def __init__(self, numels: Sequence[int]) -> None:
        self.numels = tuple(numels)
        self.offsets, self.row, chunks = plan_layout(self.numels)
        self.chunks = torch.tensor(chunks, dtype=torch.int64).reshape(-1, 3)
        self.segment_of = torch.full((self.row,), -1)  # of each column; -1: padding
        for segment, begin, end in chunks:
            self.segment_of[begin:end] = segment
        self.inside = self.segment_of >= 0

    def padding_kept(self, tensor: Tensor) -> bool:
        """True if the NaN between the segments are still what they were made as."""
        padding = tensor[..., ~self.inside]
        return same_bits(padding, torch.full_like(padding, torch.nan))

    def same_results(self, a: Tensor, b: Tensor) -> bool:
        """Of matrices with these columns, after the same call: equal as numbers where something was computed, as bits
        between the segments, where nobody may touch anything.  Of tables: equal as numbers."""
        if a.shape != b.shape or a.shape[-1:] != (self.row,):
            return same_numbers(a, b)
        return same_numbers(a, b) and same_bits(a[..., ~self.inside], b[..., ~self.inside])


class Sampler:
    """Tables and matrices of random numbers, always the same for the same seed."""

    def __init__(self, layout: Layout, seed: int = 0) -> None:
        self.layout = layout
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=self.generator)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, dtype=torch.float64, generator=self.generator)

    def rows(self, *lead: int, dtype: torch.dtype = torch.float32, offset: float = 0.0, scale: float = 1.0) -> Tensor:
        """[*lead, P] normal numbers, NaN in the padding."""
        values = offset + scale * self.normal(*lead, self.layout.row)
        return values.masked_fill(~self.layout.inside, torch.nan).to(dtype)

    def positive_rows(self, *lead: int, dtype: torch.dtype = torch.float32) -> Tensor:
        values = 0.5 + self.uniform(*lead, self.layout.row)
        return values.masked_fill(~self.layout.inside, torch.nan).to(dtype)

    def poisoned(self, *lead: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """[*lead, P] of NaN: for results."""
        return torch.full((*lead, self.layout.row), torch.nan, dtype=dtype)

    def weights(self, rows: int, tasks: int) -> Tensor:
        return self.normal(rows, tasks)

    def mix(self, *shape: int, density: float = 1.0, identity_rows: Sequence[int] = ()) -> Tensor:
        """[..., K, K] with rows that sum to one; zeros where density < 1, e_k in identity_rows."""
        present = self.uniform(*shape) < density
        mix = (self.normal(*shape) / shape[-1]) * present
        mix[..., list(identity_rows), :] = 0.0
        diagonal = torch.diagonal(mix, dim1=-2, dim2=-1)
        diagonal.copy_(1.0 - (mix.sum(-1) - diagonal))
        return mix

    def masks(self, tasks: int, density: float = 0.6) -> Tensor:
        """uint8 [T, ceil(P / 8)], random bits, set behind the last column as well."""
        bits = self.uniform(tasks, -(-self.layout.row // 8), 8) < density
        return (bits * 2 ** torch.arange(8)).sum(-1).to(torch.uint8)

    def segments(self, **fields: float | Sequence[float]) -> Tensor:
        """float64 [S, fields]: AdamW's usual hyper-parameters, and what is given: for all segments or for each."""
        usual = {"lr": 0.1, "weight_decay": 0.01, "decoupled": 1.0, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
        usual |= {"transfer": 1.0, "ema": 0.98}
        table = torch.zeros(len(self.layout.numels), len(FIELDS), dtype=torch.float64)
        for name, value in (usual | fields).items():
            table[:, FIELDS.index(name)] = torch.as_tensor(value, dtype=torch.float64)
        return table


@dataclass
class StepProblem:
    """The arguments of ``step_``, in its order."""

    theta: Tensor
    exp_avg: Tensor | None
    exp_avg_sq: Tensor | None
    max_exp_avg_sq: Tensor | None
    ema: Tensor | None
    low_precision: Tensor | None
    step: Tensor
    constants: Tensor
    grads: Tensor
    weights: Tensor | None
    mix: Tensor | None
    segments: Tensor
    chunks: Tensor
    active: Tensor | None
    grad_scale: Tensor | None
    found_inf: Tensor | None
    addresses: Tensor | None = None
    masks: Tensor | None = None
    whole: Tensor | None = None

    @staticmethod
    def sample(
        sampler: Sampler,
        rows: int,
        tasks: int = 1,
        rule: Rule = Rule.ADAM,
        *,
        theta_dtype: torch.dtype = torch.float32,
        grads_dtype: torch.dtype | None = None,
        weighted: bool = False,
        mix: Tensor | None = None,
        segments: Tensor | None = None,
        steps_taken: int = 3,
        **others: Tensor | None,
    ) -> StepProblem:
        """A problem in the middle of a run: every moment of the rule is there, `steps_taken` steps were counted."""
        num_segments = len(sampler.layout.numels)
        moments = {
            name: (sampler.positive_rows if name in SQUARES else sampler.rows)(rows, dtype=theta_dtype)
            for name in rule.moments
        }
        problem = StepProblem(
            theta=sampler.rows(rows, dtype=theta_dtype),
            exp_avg=moments.get("exp_avg"),
            exp_avg_sq=moments.get("exp_avg_sq"),
            max_exp_avg_sq=moments.get("max_exp_avg_sq"),
            ema=None,
            low_precision=None,
            step=torch.full((rows, num_segments), float(steps_taken)),
            constants=torch.full((rows, num_segments, NUM_CONSTANTS), torch.nan, dtype=torch.float64),
            grads=sampler.rows(rows, tasks, dtype=grads_dtype or theta_dtype),
            weights=sampler.weights(rows, tasks) if weighted or tasks > 1 else None,
            mix=mix,
            segments=sampler.segments() if segments is None else segments,
            chunks=sampler.layout.chunks,
            active=None,
            grad_scale=None,
            found_inf=None,
        )
        return replace(problem, **others)

    def tensors(self) -> dict[str, Tensor]:
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if value is not None}

    def copy(self) -> StepProblem:
        return replace(self, **{name: value.clone() for name, value in self.tensors().items()})

    def double(self) -> StepProblem:
        """The same numbers in float64: what the oracle is given."""
        wide = ("theta", *MOMENTS, "ema", "grads")
        copies = {
            name: widened(value) if name in wide else value.clone()
            for name, value in self.tensors().items()
            if name != "low_precision"
        }
        return replace(self, **{"low_precision": None, **copies})

    def arguments(self) -> list[Tensor | None]:
        return [getattr(self, field.name) for field in fields(self)]

    def run(self, backend: Backend, rule: Rule, order: Order = Order.CONSENSUS, *, hold: bool = False) -> StepProblem:
        """The problem after the step; this one is left as it is."""
        after = self.copy()
        backend.step_(*after.arguments(), rule=int(rule), order=int(order), hold=hold)
        return after

    def oracle(self, rule: Rule, order: Order = Order.CONSENSUS, *, hold: bool = False) -> StepProblem:
        after = self.double()
        reference.step_(*after.arguments(), rule=int(rule), order=int(order), hold=hold)
        return after
