"""Gradients of several tasks to try weightings on, and a loop that does with them what an optimizer does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from mt2o_ext import contrib
from mt2o_ext import weighting as W
from mt2o_ext.weighting import Draw, Needs, Weighting, WeightingContext

# Every registered method, by its name.
METHODS: dict[str, type[Weighting]] = {**W.register, **contrib.register}

# Every method with its defaults, and the variants that take another way through the code.
VARIANTS: dict[str, Callable[[], Weighting]] = {
    **METHODS,
    "rlw dirichlet": lambda: W.RLW(dirichlet=True),
    "stch in units": lambda: W.STCH(ideal=0.0),
    "ldc-mtl r=1": lambda: contrib.LDCMTL(by_first_losses=False),
    "gradnorm first epoch": lambda: W.GradNorm(first_epoch=True),
    "pcgrad shared": lambda: W.PCGrad(shared=True),
    "pcgrad visit self": lambda: W.PCGrad(visit_self=True),
    "gradvac on action": lambda: W.GradVac(only_on_action=True),
    "wpcgrad none": lambda: contrib.WPCGrad(protect="none", reference="original"),
    "wpcgrad first": lambda: contrib.WPCGrad(protect="first"),
    "mgda l2": lambda: W.MGDA(normaliser="l2", apply_on="normalised"),
    "mgda loss": lambda: W.MGDA(normaliser="loss", apply_on="normalised"),
    "mgda loss+": lambda: W.MGDA(normaliser="loss+", apply_on="normalised"),
    "mgda loss+ raw": lambda: W.MGDA(normaliser="loss+"),
    "mgda strict": lambda: W.MGDA(strict=True),
    "cdtt unit": lambda: W.TaskTensioner(tension="unit"),
    "cagrad no rescale": lambda: W.CAGrad(0.4, rescale=0),
    "aligned-mtl median": lambda: W.AlignedMTL(scale="median"),
    "aligned-mtl mean": lambda: W.AlignedMTL(scale="mean"),
    "nash-mtl every 2": lambda: W.NashMTL(every=2, max_norm=None),
    "fairgrad 2": lambda: W.FairGrad(2.0),
    "fairgrad 0": lambda: W.FairGrad(0.0),
    "sdmgrad two batches": lambda: W.SDMGrad(two_batches=True),
    "moco softmax": lambda: W.MoCo(projection="softmax", rho=0.1),
    "moco raw": lambda: W.MoCo(scale_free=False),
    "modo raw": lambda: W.MoDo(scale_free=False),
    "excessmtl warm": lambda: W.ExcessMTL(eta=1.0, warmup_epochs=1),
    "graddrop leak": lambda: W.GradDrop(leak=0.3),
    "pamal losses": lambda: W.PaMaL(balancing="losses"),
    "pamal norms": lambda: W.PaMaL(balancing="norms"),
    "pamal both": lambda: W.PaMaL(balancing="both"),
    "ema": lambda: W.Ema(W.UPGrad()),
    "ema moco": lambda: W.Ema(W.MoCo()),
    "every": lambda: W.Every(W.MGDA(), 2),
    "rescale": lambda: W.Rescale(W.PCGrad(), "simplex"),
    "rescale norm": lambda: W.Rescale(W.NashMTL(max_norm=None), "T", max_norm=0.5),
    "fallback": lambda: W.Fallback(W.MGDA(strict=True), W.LinearWeighting()),
    "fallback of two that remember": lambda: W.Fallback(W.GradVac(), W.Ema(W.UPGrad())),
    "log": lambda: W.LogLosses(W.IMTLG()),
    "relative": lambda: W.Relative(W.UncertaintyWeighting()),
    "per segment": lambda: W.PerSegment(W.GradVac()),
    "per segment ema": lambda: W.Ema(W.PerSegment(W.UPGrad())),
}


def untested() -> set[type[Weighting]]:
    """The classes around a weighting that no variant is of."""
    return set(W.register_around.values()) - {type(make()) for make in VARIANTS.values()}


def every_weighting(*, without: Sequence[str] = ()) -> pytest.MarkDecorator:
    """Parametrizes a test by ``make``, which makes a weighting."""
    names = [name for name in VARIANTS if name not in without]
    return pytest.mark.parametrize("make", [VARIANTS[name] for name in names], ids=names)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rows_of(kind: str, num_tasks: int, num_columns: int = 40, seed: int = 0) -> Tensor:
    """J [T, P] of a kind of task gradients."""
    rows = normal(num_tasks, num_columns, seed=seed)
    common = normal(num_columns, seed=seed + 1000)
    if kind == "conflicting":  # every pair has a negative product, but there is a common descent direction
        return rows - 1.02 * rows.mean(0) + 0.05 * common
    if kind == "scaled":
        return rows * torch.logspace(-3, 0, num_tasks, dtype=torch.float64)[:, None]
    if kind == "correlated":
        return common + 0.1 * rows
    if kind == "duplicate" and num_tasks > 1:
        rows[-1] = rows[0]
    if kind == "opposite" and num_tasks > 1:
        rows[-1] = -rows[0]
    if kind == "zero row":
        rows[num_tasks // 2] = 0
    return rows


KINDS = ("random", "conflicting", "scaled", "correlated", "duplicate", "opposite", "zero row")
REGULAR = ("random", "conflicting", "scaled", "correlated")


@dataclass
class Steps:
    """A few steps of training, the same for every weighting: K subproblems, T tasks, P columns in S segments.

    jacobians: for each step two mini-batches [2, K, T, P]. losses: [K, T] each, positive, before and after.
    """

    jacobians: list[Tensor]
    losses: list[Tensor]
    preferences: Tensor
    segments: int = 2
    epoch_length: int = 2
    names: Tensor | None = None
    scale: float = 1.0
    seed: int = 7
    present: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        return (*self.preferences.shape, self.segments)

    def permuted(self, order: Tensor) -> Steps:
        """The same steps with the tasks in another order, which keep their names."""
        return Steps(
            [pair[:, :, order] for pair in self.jacobians],
            [losses[:, order] for losses in self.losses],
            self.preferences[:, order],
            self.segments,
            self.epoch_length,
            torch.arange(len(order))[order],
            self.scale,
            self.seed,
        )

    def without(self, absent: Sequence[int]) -> tuple[Steps, Steps]:
        """The same steps without these tasks, whose numbers are nonsense then; and those of an optimizer of the others.

        The preferences of the others are in the same proportions.
        """
        there = torch.tensor([task for task in range(self.shape[1]) if task not in absent])
        jacobians = [pair.clone() for pair in self.jacobians]
        losses = [each.clone() for each in self.losses]
        for task in absent:
            for pair, each in zip(jacobians, losses, strict=True):
                pair[:, :, task], each[:, task] = 7.0, -3.0
        some = replace(self, jacobians=jacobians, losses=losses, present=there)
        preferences = self.preferences[:, there]
        others = replace(
            self,
            jacobians=[pair[:, :, there] for pair in self.jacobians],
            losses=[each[:, there] for each in self.losses],
            preferences=preferences / preferences.sum(-1, keepdim=True),
        )
        return some, others

    def run(self, weighting: Weighting, begin: int = 0, end: int | None = None) -> list[Tensor]:
        """The directions [K, P] of steps begin .. end; binds the weighting when it begins at 0."""
        if begin == 0:
            weighting.bind(*self.shape, "cpu")
        return [self.step(weighting, index) for index in range(begin, len(self.jacobians) if end is None else end)]

    def step(self, weighting: Weighting, index: int) -> Tensor:
        first, second = self.scale * self.jacobians[index]
        losses = self.scale * self.losses[index]
        generator = torch.Generator().manual_seed(self.seed + index)
        rows = [first.clone()]
        given = {
            "preferences": self.preferences,
            "losses": losses,
            "step": index,
            "epoch": index // self.epoch_length,
            "draw": Draw.new(generator),
            "tasks": self.names,
            "present": self.present,
        }
        if Needs.ROWS in weighting.needs:
            weighting.transform_(rows, WeightingContext(**given))
        parts = torch.stack([part @ part.mT for part in rows[0].chunk(self.segments, -1)], 1)
        weights = weighting.weights(
            WeightingContext(**given, gram=parts.sum(1), segments=parts, cross=first @ second.mT)
        )
        if Needs.FEEDBACK in weighting.needs:
            after = 0.9 * losses * (1 + 0.1 * self.losses[index]) / (1 + self.losses[0])
            weighting.after_step(losses, after, self.present)
        return combined(rows[0], weights)


def combined(rows: Tensor, weights: Tensor) -> Tensor:
    """J' w: [K, P] from [K, T, P] and [K, T], or [K, S, T] for S segments."""
    if weights.ndim == 2:
        return torch.einsum("ktp,kt->kp", rows, weights)
    parts = rows.chunk(weights.shape[1], -1)
    return torch.cat([combined(part, weights[:, i]) for i, part in enumerate(parts)], -1)


def steps(
    kind: str = "random", num_subproblems: int = 2, num_tasks: int = 4, count: int = 4, columns: int = 24
) -> Steps:
    """Steps whose gradients are of this kind."""
    jacobians = [
        torch.stack(
            [
                torch.stack(
                    [rows_of(kind, num_tasks, columns, seed=97 * i + 7 * k + batch) for k in range(num_subproblems)]
                )
                for batch in range(2)
            ]
        )
        for i in range(count)
    ]
    losses = [0.2 + normal(num_subproblems, num_tasks, seed=500 + i).abs() for i in range(count)]
    return Steps(jacobians, losses, torch.full((num_subproblems, num_tasks), 1 / num_tasks, dtype=torch.float64))


def assert_close(actual: Tensor, expected: Tensor, *, rtol: float = 1e-10, atol: float = 0.0) -> None:
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def assert_parallel(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    """The same directions [..., P]: unit vectors differ by at most ``tolerance``; zero stays zero."""
    units = [_unit(each) for each in (actual, expected)]
    torch.testing.assert_close(*units, rtol=0.0, atol=tolerance)


def _unit(vectors: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return torch.where(length > 0, vectors / torch.where(length > 0, length, 1.0), 0.0)


# ---------------------------------------------------------------------- oracles
def by_autograd(parameter: Tensor, objective: Tensor) -> Tensor:
    return torch.autograd.grad(objective, parameter)[0]


def adam(gradients: list[Tensor], start: Tensor, lr: float, weight_decay: float = 0.0) -> Tensor:
    """torch.optim.Adam on these gradients, as an oracle."""
    value = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([value], lr=lr, weight_decay=weight_decay)
    for gradient in gradients:
        value.grad = gradient
        optimizer.step()
    return value.detach()


def context(rows: Tensor, losses: Tensor | None = None, *, seed: int = 0, step: int = 0, epoch: int = 0):
    num_tasks = len(rows)
    return WeightingContext(
        preferences=torch.full((1, num_tasks), 1 / num_tasks, dtype=torch.float64),
        losses=None if losses is None else losses[None],
        gram=(rows @ rows.T)[None],
        draw=Draw.new(torch.Generator().manual_seed(seed)),
        step=step,
        epoch=epoch,
    )


def bound(weighting, num_tasks: int):
    weighting.bind(1, num_tasks, 1, "cpu")
    return weighting


def assert_same_direction(weights: Tensor, rows: Tensor, expected: Tensor) -> None:
    """J' w is this vector, up to 1e-12 of the rows' lengths."""
    unit = rows.norm(dim=1).max()
    assert_close((rows.T @ weights[0]) / unit, expected / unit, atol=1e-12, rtol=1e-12)


def pcgrad(rows: Tensor, orders: Tensor, *, visit_self: bool = False) -> Tensor:
    changed = rows.clone()
    for i in range(len(rows)):
        for j in orders[i].tolist():
            if (j != i or visit_self) and changed[i] @ rows[j] < 0:
                changed[i] -= (changed[i] @ rows[j]) / (rows[j] @ rows[j]) * rows[j]
    return changed
