"""Checks of ranks that share subproblems: what is not finite, what fails, what is refused, saving and going on."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor

from mt2o_ext import MT2OFused, load_checkpoint, save_checkpoint
from mt2o_ext.base import SGD
from mt2o_ext.transfer import Mean
from mt2o_ext.weighting import ExcessMTL
from support.optim.mesh_runs import FIVE, OTHERS, RUNS, Trained
from support.optim.towers import Towers, batch_of
from support.worlds import Check


def values_of(trained: Trained) -> dict[str, Tensor]:
    """All that is trained here."""
    state = trained.optimizer.state_dict()["state"]
    return {f"{i} {key}": value for i, own in state.items() for key, value in own.items()}


# ---------------------------------------------------------------------- not finite
def not_finite(rank: int, ranks: int, scaled: bool = False, **options: Any) -> dict[str, Any]:
    """The last subproblem has a NaN in its third step, in which a transfer is due."""
    trained = Trained(rank, ranks, **options)
    optimizer, last = trained.optimizer, 4
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=True) if scaled else None
    seen: list[dict[str, Tensor]] = []
    for step in range(4):
        for k in optimizer.subproblems():
            losses = trained.losses(step, k)
            bad = step == 2 and k == last
            optimizer.backward(
                [loss * torch.nan if bad else loss for loss in losses if loss is not None], scaler=scaler
            )
        seen.append(values_of(trained))
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
    seen.append(values_of(trained))
    moved = [any(not torch.equal(old[key], new[key]) for key in old) for old, new in pairwise(seen)]
    return {
        **trained.found(), "moved": moved, "skipped": optimizer.skipped_steps,
        "scale": None if scaler is None else scaler.get_scale(),
    }  # fmt: skip


# ---------------------------------------------------------------------- one rank is not like the others
def failing(rank: int, ranks: int, **options: Any) -> None:
    """The last rank fails in its third step, in which nothing is exchanged but a word."""
    trained = Trained(rank, ranks, **options).steps(range(2))
    if rank == ranks - 1:
        trained.optimizer.step(lambda: [torch.zeros(())])
    trained.steps(range(2, 6))


def failing_in_both(rank: int, ranks: int) -> None:
    """The same in a mesh of two dimensions: also those hear of it who share no group with the last rank."""
    mesh = init_device_mesh("cpu", (2, ranks // 2), mesh_dim_names=("data", "subproblem"))
    failing(rank, ranks, front="rows", transfer=None, mesh=mesh["subproblem"], process_group=mesh["data"].get_group())


def failing_evaluation(rank: int, ranks: int) -> None:
    trained = Trained(rank, ranks, front="rows")
    trained.optimizer.front(lambda: [loss / (ranks - 1 - rank) for loss in [1.0, 2.0, 3.0]])


def other_metrics(rank: int, ranks: int) -> None:
    trained = Trained(rank, ranks, front="rows")
    trained.optimizer.front(lambda: (trained.model.losses(trained.batch(0, 0)), {f"of {rank // (ranks - 1)}": 1.0}))


def other_number(rank: int, ranks: int) -> None:
    MT2OFused(Towers().parameters(), num_tasks=2, num_subproblems=8 + (rank == ranks - 1), subproblem_mesh=True)


def too_few_on_one(rank: int, ranks: int) -> None:
    MT2OFused(Towers().parameters(), num_tasks=2, num_subproblems=1 if rank == ranks - 1 else 8, subproblem_mesh=True)


def other_rate(rank: int, ranks: int) -> None:
    trained = Trained(rank, ranks, front="rows").steps(range(1))
    trained.optimizer.param_groups[0]["lr"] *= 1 + (rank == ranks - 1)
    trained.steps(range(1, 2))


def other_preferences(rank: int, ranks: int) -> None:
    trained = Trained(rank, ranks, front="rows")
    trained.optimizer.preferences = [*FIVE[:4], [0.2, 0.2, 0.6] if rank == ranks - 1 else FIVE[4]]


def other_vertices(rank: int, ranks: int) -> None:
    """Somebody has written to the vertices of one rank."""
    trained = Trained(rank, ranks, front="vertices").steps(range(1))
    if rank == ranks - 1:
        with torch.no_grad():
            next(iter(trained.optimizer.state.values()))["vertices"].add_(1.0)
    trained.found()


DIFFERENT: dict[str, tuple[Check, str]] = {
    "failing, rows": (partial(failing, front="rows", transfer=None), "failed: "),
    "failing, both dimensions": (failing_in_both, "failed: "),
    "failing, vertices": (partial(failing, front="vertices"), "failed: "),
    "failing evaluation": (failing_evaluation, "failed: ZeroDivisionError"),
    "number": (other_number, "differ in num_subproblems"),
    "too few on one": (too_few_on_one, "failed: ValueError"),
    "rate": (other_rate, "differ in parameter group"),
    "preferences": (other_preferences, "differ in subproblem 4 preferences"),
    "vertices": (other_vertices, "differ in vertices 0 checksum"),
}


# ---------------------------------------------------------------------- refusals
def two_dimensions(rank: int, ranks: int) -> None:
    mesh = init_device_mesh("cpu", (ranks // 2, 2), mesh_dim_names=("data", "subproblem"))
    Trained(rank, ranks, mesh=mesh)


def subproblem_elsewhere(rank: int, ranks: int) -> None:
    with Trained(rank, ranks, front="rows").optimizer.subproblem(0 if rank else 4):
        pass


def state_of_others(rank: int, ranks: int) -> None:
    trained = Trained(rank, ranks, front="rows")
    states: list[Any] = [None] * ranks
    dist.all_gather_object(states, trained.optimizer.state_dict())
    trained.optimizer.load_state_dict(states[(rank + 1) % ranks])


def state_of_one_in_a_process(rank: int, ranks: int) -> None:
    state = Trained(rank, ranks, front="rows").optimizer.state_dict()
    Trained(rank, 1, front="rows", process_group=False).optimizer.load_state_dict(state)


def wrapped(rank: int, ranks: int) -> None:
    model = nn.Linear(3, 2)
    through = nn.parallel.DistributedDataParallel(model)
    optimizer = MT2OFused(model.parameters(), num_tasks=2, num_subproblems=4, subproblem_mesh=True, process_group=False)
    for _ in optimizer.subproblems():
        optimizer.backward(through(torch.ones(1, 3))[0])


def branched_from_rows(rank: int, ranks: int) -> None:
    MT2OFused.branch_from(Trained(rank, ranks, front="rows").optimizer, num_tasks=3)


def stacked(rank: int, ranks: int) -> None:
    parameters = [nn.Parameter(torch.zeros(4, 3))]
    MT2OFused(parameters, num_tasks=2, num_subproblems=4, stacked=True, subproblem_mesh=True)


def sharded(rank: int, ranks: int) -> None:
    p = nn.Parameter(distribute_tensor(torch.zeros(4), init_device_mesh("cpu", (ranks,))))
    MT2OFused([p], num_tasks=2, num_subproblems=4, front="rows", subproblem_mesh=True)


def mesh_as_group(rank: int, ranks: int) -> None:
    MT2OFused(Towers().parameters(), num_tasks=2, process_group=init_device_mesh("cpu", (ranks,)))


REFUSALS: dict[str, tuple[Check, type[Exception], str]] = {
    "two dimensions": (two_dimensions, ValueError, 'of one dimension, got one of 2: pass .*mesh."subproblem".'),
    "no mesh": (partial(Trained, mesh=2), TypeError, "expected subproblem_mesh as a DeviceMesh"),
    "more ranks than rows": (
        partial(Trained, num_subproblems=1, preferences=FIVE[:1], front="rows"), ValueError, "num_subproblems >= ",
    ),
    "more ranks than points": (partial(Trained, points=1), ValueError, "expected points >= "),
    "averages of other subproblems": (partial(Trained, process_group=True), ValueError, "init_device_mesh"),
    "a bank": (stacked, ValueError, "expected stacked=False with subproblem_mesh="),
    "few for many": (partial(Trained, scalarization="few-for-many"), ValueError, "got FewForMany"),
    "subproblem elsewhere": (subproblem_elsewhere, ValueError, "which rank . trains: do this on that rank"),
    "state of others": (state_of_others, ValueError, "or save whole_state_dict"),
    "state of a part": (state_of_one_in_a_process, ValueError, "of all 5, got that of .* whole_state_dict"),
    "sharded": (sharded, TypeError, "subproblem_mesh= sends rows of whole parameters to other ranks"),
    "a mesh as a group": (mesh_as_group, TypeError, "got DeviceMesh: pass its group"),
    "wrapper": (wrapped, RuntimeError, "averages the gradients of different subproblems: leave the wrapper out"),
    "branch": (branched_from_rows, ValueError, "or of a front on vertices, got .* of 5 subproblems"),
    "metrics": (other_metrics, ValueError, "expected the metrics"),
}  # fmt: skip


# ---------------------------------------------------------------------- saving and going on
KINDS: dict[str, dict[str, Any]] = {
    "rows": {"front": "rows", "transfer": partial(Mean, 0.1), "history": 10},
    "rows, weighting": {"front": "rows", "weighting": partial(ExcessMTL)},
    "vertices": {"front": "vertices", "history": 10},
    "vertices, weighting": {"front": "vertices", "weighting": "pamal", "scalarization": None},
}


def resumed(rank: int, ranks: int, kind: str, folder: Path) -> dict[str, Any]:
    """Goes on from the state of each rank, bit for bit; from the whole on as many ranks; and, of four, on two."""
    trained = Trained(rank, ranks, **KINDS[kind]).steps(range(3))
    own, whole = trained.optimizer.state_dict(), trained.optimizer.whole_state_dict()
    copied = copy.deepcopy(trained.optimizer).state_dict()
    if rank == 0:
        save_checkpoint(folder / f"{kind} {ranks}.pt", optimizer=whole)
    dist.barrier()
    expected = trained.steps(range(3, 6))
    found: dict[str, Any] = {"expected": values_of(expected), **expected.found()}
    found["copied"] = all(map(torch.equal, leaves_of(copied), leaves_of(own)))
    again = Trained(rank, ranks, **KINDS[kind])
    again.optimizer.load_state_dict(own)
    found["again"] = values_of(again.steps(range(3, 6)))
    once_more = Trained(rank, ranks, **KINDS[kind])
    load_checkpoint(folder / f"{kind} {ranks}.pt", optimizer=once_more.optimizer)
    found["from the whole"] = values_of(once_more.steps(range(3, 6)))
    if ranks == 4:
        halves = [dist.new_group([0, 1]), dist.new_group([2, 3])]
        fewer = Trained(rank, 2, mesh=halves[rank // 2], process_group=False, **KINDS[kind])
        load_checkpoint(folder / f"{kind} {ranks}.pt", optimizer=fewer.optimizer)
        found["on two"] = fewer.steps(range(3, 6)).found()
    return found


def alone(kind: str, folder: Path, ranks: int) -> dict[str, Any]:
    """The same in one process."""
    trained = Trained(0, 1, **KINDS[kind])
    load_checkpoint(folder / f"{kind} {ranks}.pt", optimizer=trained.optimizer)
    return trained.steps(range(3, 6)).found()


def leaves_of(found: Any) -> list[Tensor]:
    if isinstance(found, dict):
        return [leaf for key in sorted(found, key=str) for leaf in leaves_of(found[key])]
    if isinstance(found, (list, tuple)):
        return [leaf for value in found for leaf in leaves_of(value)]
    return [found] if isinstance(found, Tensor) else []


# ---------------------------------------------------------------------- both dimensions, branches, other preferences
def both_dimensions(rank: int, ranks: int, front: str) -> dict[str, Any]:
    """Half of each batch on each rank of the first dimension, half of the subproblems in the second."""
    options: dict[str, Any] = {"front": front}
    if ranks > 1:
        mesh = init_device_mesh("cpu", (2, ranks // 2), mesh_dim_names=("data", "subproblem"))
        options |= {"mesh": mesh["subproblem"], "process_group": mesh["data"].get_group()}
    trained = Trained(rank, ranks, base=SGD(momentum=0.9), **options)
    optimizer = trained.optimizer
    for step in range(4):
        for k in optimizer.subproblems():
            batch = trained.batch(step, k)
            halves = batch.chunk(2) if ranks > 1 else [batch]
            optimizer.backward(trained.model.losses(halves[rank * 2 // ranks]))
        optimizer.step()
    return trained.found()


def branched(rank: int, ranks: int, front: str, first: str) -> dict[str, Any]:
    """From one model, or from a front on vertices, to a front over ranks."""
    model = Towers(dtype=torch.float64)
    if first == "one model":
        before: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for step in range(2):
            before.zero_grad()
            torch.stack(model.losses(batch_of(step, torch.float64))).sum().backward()
            before.step()
        options: dict[str, Any] = {}
    else:
        start = Trained(rank, ranks, front="vertices").steps(range(2))
        before, model, options = start.optimizer, start.model, {}
    if front == "vertices":
        options["generator"] = torch.Generator().manual_seed(8)
    trained = Trained.__new__(Trained)
    trained.model, trained.absent, trained.dtype = model, {}, torch.float64
    trained.optimizer = MT2OFused.branch_from(
        before, num_tasks=3, num_subproblems=5, preferences=FIVE, front=front, subproblem_mesh=ranks > 1, **options
    )
    return trained.steps(range(2)).found(ema=False)


def turned(rank: int, ranks: int) -> dict[str, Any]:
    """Other preferences in the middle of a run; a start of its own for each subproblem."""
    models: list[Towers] = []

    def start(k: int) -> None:
        for p in models[0].parameters():
            p.data.add_(0.01 * k)

    models.append(Towers(dtype=torch.float64, seed=rank))
    trained = Trained.__new__(Trained)
    trained.model, trained.absent, trained.dtype = models[0], {}, torch.float64
    trained.optimizer = MT2OFused(
        models[0].parameters(), num_tasks=3, num_subproblems=5, preferences=FIVE, start=start, transfer=Mean(0.1),
        subproblem_mesh=ranks > 1,
    )  # fmt: skip
    trained.steps(range(2))
    trained.optimizer.preferences = FIVE[::-1]
    return trained.steps(range(2, 4)).found(ema=False)


def grown(rank: int, ranks: int, front: str) -> dict[str, Any]:
    """A head more in the middle of a run, which begins differently on each rank, and a frozen tensor."""
    trained = Trained(rank, ranks, front=front, groups=some_of)
    last = trained.model.heads[-1]
    for p in last.requires_grad_(False).parameters():
        p.data.fill_(0.1)
    trained.steps(range(2))
    for p in last.requires_grad_(True).parameters():
        p.data.add_(rank)
    trained.optimizer.add_param_group({"params": list(last.parameters()), "lr": 0.1})
    trained.model.trunk[0].bias.requires_grad_(False)
    return trained.steps(range(2, 4)).found()


def some_of(model: Towers) -> list[nn.Parameter]:
    """All but the last head."""
    last = set(model.heads[-1].parameters())
    return [p for p in model.parameters() if p not in last]


def copies_that_drift(rank: int, ranks: int) -> None:
    """Two meshes beside one another, and nobody averages."""
    halves = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    Trained(rank, 2, mesh=halves[rank // 2], front="rows").steps(range(1))


def saved_part(rank: int, ranks: int) -> None:
    """What a rank saves that nobody has told of the others."""
    trained = Trained(rank, ranks, front="rows")
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder) / "whole.pt", model=trained.model, optimizer=trained.optimizer.state_dict())
        save_checkpoint(Path(folder) / "part.pt", model=trained.model, optimizer=trained.optimizer)


def bits(rank: int, ranks: int) -> dict[str, Any]:
    """Steps in which no transfer is due, of a model without products of matrices, which round by their alignment."""
    p = nn.Parameter(torch.linspace(-1, 1, 1000))
    optimizer = MT2OFused(
        [p], num_tasks=2, num_subproblems=5, front="rows", lr=0.1, ema=0.9, max_norm=1.0, subproblem_mesh=ranks > 1
    )
    for step in range(9):
        for k in optimizer.subproblems():
            optimizer.backward([((p - k) ** 2).sum(), ((p + step) ** 4).sum()])
        optimizer.step()
    return {"state": optimizer.whole_state_dict()}


def shared_batch(rank: int, ranks: int) -> list[str]:
    """All subproblems have one mini-batch, which there is a warning of, on each rank."""
    trained = Trained(rank, ranks, front="rows", transfer=Mean(0.1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in trained.optimizer.subproblems():
            trained.optimizer.backward(trained.losses(0, 0))
        trained.optimizer.step()
    return [str(one.message) for one in caught]


FRONTS = ("rows", "vertices")
SAME: dict[str, Check] = {
    **RUNS,
    **OTHERS,
    **{f"{what}, {name}": partial(not_finite, **options) for what, name, options in (
        ("not finite", "rows", {"front": "rows", "transfer": partial(Mean, 0.1)}),
        ("not finite", "all rows", {"front": "rows", "transfer": partial(Mean, 0.1), "skip_nonfinite": "all"}),
        ("not finite", "vertices", {"front": "vertices"}),
        ("not finite", "scaled rows", {"front": "rows", "transfer": partial(Mean, 0.1), "scaled": True}),
        ("not finite", "scaled vertices", {"front": "vertices", "scaled": True}),
    )},
    **{f"branch, {first} to {front}": partial(branched, front=front, first=first)
       for first in ("one model", "vertices") for front in FRONTS},
    "other preferences": turned,
    **{f"grown, {front}": partial(grown, front=front) for front in FRONTS},
}  # fmt: skip
BOTH: dict[str, Check] = {f"both dimensions, {front}": partial(both_dimensions, front=front) for front in FRONTS}


# One of each way through the code; two ranks go through all of them.
ON_FOUR = {
    "rows, spectral", "rows, neighbours, moments", "rows, changes", "rows, by tensor", "rows, absent",
    "rows, all together", "rows, closure", "vertices, more points", "vertices, absent on some", "vertices, closure",
    "not finite, scaled rows", "not finite, all rows",
}  # fmt: skip
DIFFERENT_ON_FOUR = {"failing, rows", "failing, both dimensions", "failing evaluation", "vertices"}


def same_of(ranks: int) -> dict[str, Check]:
    """The checks that have to give what they give in one process."""
    return SAME if ranks == 2 else {**{name: SAME[name] for name in SAME if name in ON_FOUR}, **BOTH}


def different_of(ranks: int) -> list[str]:
    of_two = [name for name in DIFFERENT if name != "failing, both dimensions"]
    return of_two if ranks == 2 else [name for name in DIFFERENT if name in DIFFERENT_ON_FOUR]


def kinds_of(ranks: int) -> list[str]:
    return [*KINDS] if ranks == 2 else ["rows", "vertices, weighting"]


def checks_of(ranks: int, folder: Path) -> dict[str, Callable[[int, int], Any]]:
    return {
        **same_of(ranks),
        **{f"differs: {name}": DIFFERENT[name][0] for name in different_of(ranks)},
        **{f"refused: {name}": check for name, (check, *_) in REFUSALS.items() if ranks == 2},
        **{f"resumed: {kind}": partial(resumed, kind=kind, folder=folder) for kind in kinds_of(ranks)},
        "shared batch": shared_batch,
        "saved part": saved_part,
        **({"bits": bits} if ranks == 2 else {"copies": copies_that_drift}),
    }
