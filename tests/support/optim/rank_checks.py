"""What every rank of a world does; with one rank, what they should all do together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from mt2o_ext import ConnectionStrengthFused, HarmonyFused, MT2OFused, SubproblemBank, WeightedBackward, WeightedFused
from mt2o_ext.base import SGD
from mt2o_ext.masks import CosineBudget
from mt2o_ext.scalarization import SmoothTchebycheff
from mt2o_ext.transfer import GumbelPrior
from mt2o_ext.weighting import DWA, FAMO, MGDA, CAGrad, PaMaL, PCGrad, UncertaintyWeighting, UPGrad, Weighting
from support.optim.priority_model import TASKS, Batches, network, optimizer_of
from support.optim.towers import WEIGHTINGS, Towers, batch_of, values, weighted
from support.worlds import Check

STEPS = 3
CORNERS = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
FIVE = [*CORNERS, [0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]
DOUBLE = torch.float64


def group_of(ranks: int) -> bool | None:
    return True if ranks > 1 else None


def generator_of(rank: int) -> torch.Generator:
    return torch.Generator().manual_seed(3 + rank)  # the first rank's numbers count


def part(batch: Tensor, rank: int, ranks: int) -> Tensor:
    return batch.chunk(ranks)[rank]


# ---------------------------------------------------------------------- the run of one process on the joined batch
def weighted_run(rank: int, ranks: int, name: str) -> dict[str, Any]:
    model = Towers(dtype=DOUBLE, seed=rank)
    optimizer = weighted(
        model, WEIGHTINGS[name](), base=SGD(momentum=0.9), process_group=group_of(ranks), generator=generator_of(rank)
    )
    for seed in range(STEPS):
        batch = part(batch_of(seed, DOUBLE), rank, ranks)
        losses = optimizer.step(lambda: model.losses(batch))  # noqa: B023
    return {"values": values(model), "weights": optimizer.weights, "losses": losses, "state": optimizer.state_dict()}


def absent_run(rank: int, ranks: int) -> dict[str, Any]:
    """No rank has data of task 1, in a list of losses and in a loop."""
    model = Towers(dtype=DOUBLE, seed=rank)
    optimizer = weighted(model, CAGrad(), process_group=group_of(ranks))
    for seed in range(STEPS):
        losses = model.losses(part(batch_of(seed, DOUBLE), rank, ranks))
        if seed % 2:
            optimizer.backward([losses[0], None, losses[2]])
        else:
            for task in optimizer.tasks():
                optimizer.backward(None if task == 1 else losses[task], retain_graph=True)
        optimizer.step()
    return {"values": values(model), "weights": optimizer.weights, "state": optimizer.state_dict()}


def mt2o_run(rank: int, ranks: int, **options: Any) -> dict[str, Any]:
    model = Towers(dtype=DOUBLE, seed=rank)
    start, absent = options.pop("start", None), options.pop("absent", {})
    if "front" in options:
        options["generator"] = generator_of(rank)
    optimizer = MT2OFused(
        model.parameters(), num_tasks=3, num_subproblems=5, preferences=FIVE, base=SGD(momentum=0.9), lr=1e-2, ema=0.9,
        process_group=group_of(ranks), start=start and partial(start, model, rank), **options,
    )  # fmt: skip
    for step in range(STEPS):
        for k in optimizer.subproblems():
            losses: list[Any] = model.losses(part(batch_of(10 * step + k, DOUBLE), rank, ranks))
            optimizer.backward([loss if task != absent.get(k) else None for task, loss in enumerate(losses)])
        optimizer.step()
        optimizer.zero_grad()
    return {"values": values(model), "state": optimizer.state_dict()}


def points_run(rank: int, ranks: int) -> dict[str, Any]:
    weighting = PaMaL(balancing="both", regularization=0.1)
    return mt2o_run(rank, ranks, front="vertices", scalarization=None, weighting=weighting, concentration=2.0)


def drawn_transfer_run(rank: int, ranks: int) -> dict[str, Any]:
    return mt2o_run(rank, ranks, transfer=GumbelPrior(0.3, every=1, generator=generator_of(rank)))


class Losses(nn.Module):
    """Any function of a model as the forward of a module, which DistributedDataParallel wants."""

    def __init__(self, model: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *given: Any) -> Any:
        return self.function(*given)


def wrapped_mt2o_run(rank: int, ranks: int) -> dict[str, Any]:
    """In DistributedDataParallel, without a group."""
    model = Towers(dtype=DOUBLE, seed=rank)
    losses: nn.Module = Losses(model, model.losses)
    if ranks > 1:
        losses = nn.parallel.DistributedDataParallel(losses)
    optimizer = MT2OFused(
        model.parameters(), num_tasks=3, num_subproblems=5, preferences=FIVE, base=SGD(momentum=0.9), lr=1e-2,
        process_group=False,
    )  # fmt: skip
    for step in range(STEPS):
        for k in optimizer.subproblems():
            optimizer.backward(losses(part(batch_of(10 * step + k, DOUBLE), rank, ranks)))
        optimizer.step()
        optimizer.zero_grad()
    return {"values": values(model), "state": optimizer.state_dict()}


def wrapped_priority_run(rank: int, ranks: int) -> dict[str, Any]:
    """The same; each rank returns its own losses."""
    model = network(0, dtype=DOUBLE).eval()
    loss: nn.Module = Losses(model, lambda x, y, task: (model(x, task) - y).square().mean())
    if ranks > 1:
        loss = nn.parallel.DistributedDataParallel(loss, find_unused_parameters=True)
    optimizer = optimizer_of(model, schedule=half, process_group=False)
    batches = Batches(dtype=DOUBLE)
    for _ in range(STEPS):
        batches.draw()
        x, targets = part(batches.x, rank, ranks), batches.targets.chunk(ranks, 1)[rank]
        optimizer.step(lambda task: loss(x, targets[task], task))  # noqa: B023
    return {"values": values(model), "state": optimizer.state_dict()}


def wrapped_masked_run(rank: int, ranks: int) -> dict[str, Any]:
    """A model in DistributedDataParallel averages itself: no group."""
    model = Towers(dtype=DOUBLE, seed=0)
    optimizer = HarmonyFused(
        model.named_parameters(), num_tasks=3, lr=1e-2, density=0.6, process_group=False, generator=generator_of(0)
    )
    wrapped = nn.parallel.DistributedDataParallel(model.trunk) if ranks > 1 else model.trunk
    for seed in range(2 * STEPS):
        batch = part(batch_of(seed, DOUBLE), rank, ranks)
        optimizer.step(lambda task: wrapped(batch).square().mean() * (task + 1))  # noqa: B023
    return {"values": values(model)}


def moved_by_rank(model: nn.Module, rank: int, k: int) -> None:
    for p in model.parameters():
        p.add_(0.01 * k + 0.001 * rank)


def bank_run(rank: int, ranks: int, front: str) -> dict[str, Any]:
    torch.manual_seed(rank)
    bank = SubproblemBank(nn.Linear(7, 1).double(), num_subproblems=5)
    options = {"generator": generator_of(rank)} if front == "vertices" else {}
    optimizer = MT2OFused(
        bank.parameters(), num_tasks=2, num_subproblems=5, stacked=True, lr=1e-2, process_group=group_of(ranks),
        front=front, **options,
    )  # fmt: skip
    for step in range(STEPS):
        x = torch.stack([part(batch_of(10 * step + k, DOUBLE), rank, ranks) for k in range(5)])
        y = bank(x)[..., 0]
        optimizer.backward(torch.stack([(y - x[..., 0]).square().mean(1), (y + x[..., 1]).square().mean(1)], 1))
        optimizer.step()
        optimizer.zero_grad()
    return {"values": values(bank), "state": optimizer.state_dict()}


def priority_run(rank: int, ranks: int, mode: str) -> dict[str, Any]:
    model = network(rank, dtype=DOUBLE).eval()  # each rank with running statistics of its own would be something else
    for buffer, common in zip(model.buffers(), network(0, dtype=DOUBLE).buffers(), strict=True):
        buffer.copy_(common)
    optimizer = optimizer_of(
        model, mode=mode, schedule=half, shuffle=True, seed=5 + rank, process_group=group_of(ranks)
    )
    batches = Batches(dtype=DOUBLE)
    for _ in range(2 * STEPS):
        batches.draw()
        x, targets = part(batches.x, rank, ranks), batches.targets.chunk(ranks, 1)[rank]
        losses = optimizer.step(lambda task: (model(x, task) - targets[task]).square().mean())  # noqa: B023
    return {"values": values(model), "losses": losses, "state": optimizer.state_dict()}


def masked_run(rank: int, ranks: int, **options: Any) -> dict[str, Any]:
    """Masks that change, of one task a step or of all, with heads."""
    model = Towers(dtype=DOUBLE, seed=rank)
    heads = [{"params": list(head.parameters()), "task": task} for task, head in enumerate(model.heads)]
    optimizer = HarmonyFused(
        [{"params": list(model.trunk.parameters())}, *heads], num_tasks=3, lr=1e-2, base=SGD(momentum=0.9),
        density=0.6, budget=CosineBudget(steps=4, high=9), interval=2,
        process_group=group_of(ranks), generator=generator_of(rank), **options,
    )  # fmt: skip
    found = []
    for seed in range(2 * STEPS):
        batch = part(batch_of(seed, DOUBLE), rank, ranks)
        found.append(optimizer.step(lambda task: model.losses(batch)[task]))  # noqa: B023
    losses, state = torch.stack(found).nan_to_num(), optimizer.state_dict()
    return {"values": values(model), "masks": optimizer.masks.bits, "losses": losses, "state": state}


def half(progress: float) -> float:
    return 0.5


def backward_run(rank: int, ranks: int, weighting: Callable[[], Weighting], **options: Any) -> dict[str, Any]:
    model = Towers(dtype=DOUBLE, seed=rank)
    through, learns = options.pop("features", False), weighting is FAMO
    backward = WeightedBackward(
        model.groups(), num_tasks=3, weighting=weighting(), generator=generator_of(rank),
        process_group=group_of(ranks), **options,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for seed in range(STEPS):
        optimizer.zero_grad()
        for half_batch in batch_of(seed, DOUBLE).chunk(1 if learns else 2):  # the second one is added to the first
            batch = part(half_batch, rank, ranks)
            z = model.trunk(batch)
            weights = backward(
                model.losses(batch) if not through else losses_of(model, z, batch), features=[z] * through
            )
        optimizer.step()
        if learns:
            backward.feedback(model.losses(batch))
    return {"values": values(model), "weights": weights, "state": backward.state_dict()}


def losses_of(model: Towers, z: Tensor, batch: Tensor) -> list[Tensor]:
    return [
        (head(z)[:, 0] - (-1) ** task * (1 + task) * batch[:, 0]).square().mean() + 0.1
        for task, head in enumerate(model.heads)
    ]


NAMES = ["sum", "random", "losses", "feedback", "gram", "gram, random order", "rows", "rows, memory", "each tensor"]
RUNS: dict[str, Check] = {
    **{f"weighted, {name}": partial(weighted_run, name=name) for name in NAMES},
    "weighted, absent task": absent_run,
    "masks": masked_run,
    "masks in a wrapper": wrapped_masked_run,
    "masks, all tasks": partial(masked_run, turns="all", max_norm=0.5),
    "mt2o": mt2o_run,
    "mt2o, start": partial(mt2o_run, start=moved_by_rank),
    "mt2o, vertices, start": partial(mt2o_run, front="vertices", start=moved_by_rank),
    "mt2o, smooth": partial(mt2o_run, scalarization=SmoothTchebycheff(mu=0.5)),
    "mt2o, absent tasks": partial(mt2o_run, absent={1: 0, 3: 2}, scalarization=SmoothTchebycheff(mu=0.5)),
    "mt2o, weighting": partial(mt2o_run, weighting="cagrad"),
    "mt2o, weighting of preferences": partial(mt2o_run, weighting="upgrad", scalarization=None),
    "mt2o, drawn transfer": drawn_transfer_run,
    "mt2o, stacked": partial(bank_run, front="rows"),
    "mt2o, vertices, stacked": partial(bank_run, front="vertices"),
    "mt2o, vertices": partial(mt2o_run, front="vertices"),
    "mt2o, vertices, weighting of points": points_run,
    "wrapped, mt2o": wrapped_mt2o_run,
    "wrapped, priority": wrapped_priority_run,
    "priority, faithful": partial(priority_run, mode="faithful"),
    "priority, general": partial(priority_run, mode="general"),
    "backward, gram": partial(backward_run, weighting=UPGrad),
    "backward, random order": partial(backward_run, weighting=PCGrad, heads="weighted"),
    "backward, losses": partial(backward_run, weighting=UncertaintyWeighting),
    "backward, feedback": partial(backward_run, weighting=FAMO, store=False),
    "backward, features": partial(backward_run, weighting=MGDA, features=True, store=False),
}


# ---------------------------------------------------------------------- one rank is not like the others
def made(**options: Any) -> tuple[Towers, WeightedFused]:
    model = Towers(options.pop("num_tasks", 3))
    return model, weighted(model, options.pop("weighting", None) or CAGrad(), process_group=True, **options)


def other_tasks(rank: int, ranks: int) -> None:
    made(num_tasks=2 + (rank == ranks - 1))


def other_weighting(rank: int, ranks: int) -> None:
    made(weighting=CAGrad(c=0.4 + 0.1 * (rank == ranks - 1)))


def other_base(rank: int, ranks: int) -> None:
    made(base="sgd" if rank == ranks - 1 else "adam")


def other_lr(rank: int, ranks: int) -> None:
    made(lr=1e-2 * (1 + (rank == ranks - 1)))


def other_order(rank: int, ranks: int) -> None:
    layers = [nn.Linear(4, 3), nn.Linear(3, 2)]
    parameters = [p for layer in layers for p in layer.parameters()]
    MT2OFused(parameters[:: -1 if rank == ranks - 1 else 1], num_tasks=2, process_group=True)


def other_order_of_equal_shapes(rank: int, ranks: int, kind: str) -> None:
    """As the order of a set may be; the values are those of one seed."""
    torch.manual_seed(0)
    layers = [nn.Linear(4, 4, bias=False) for _ in range(3)]
    parameters = [layer.weight for layer in layers[:: -1 if rank == ranks - 1 else 1]]
    if kind == "backward":
        WeightedBackward(parameters, num_tasks=2, process_group=True)
    elif kind == "group":
        made()[1].add_param_group({"params": parameters})
    else:
        MT2OFused(parameters, num_tasks=2, process_group=True)


def loaded_on_one(rank: int, ranks: int, kind: str) -> None:
    """The last rank goes on from a checkpoint, the others from nothing."""
    model = Towers()
    step = stepper(kind, model)
    if rank == ranks - 1:
        model.load_state_dict(Towers(seed=9).state_dict())
    step(batch_of(rank))


def other_masks(rank: int, ranks: int) -> None:
    """The last rank sets a mask in mid-run, the others do not."""
    model = Towers()
    optimizer = HarmonyFused(model.trunk.named_parameters(), num_tasks=3, density=0.6, process_group=True)
    for seed in range(2):
        if seed == 1 and rank == ranks - 1:
            optimizer.masks.set_flat(2, torch.zeros_like(optimizer.masks.flat(2)))
        optimizer.step(lambda task: model.trunk(batch_of(seed)).square().mean())  # noqa: B023


def other_number(rank: int, ranks: int) -> None:
    layers = [nn.Linear(4, 3), nn.Linear(3, 2)]
    parameters = [p for layer in layers[: 1 if rank == ranks - 1 else 2] for p in layer.parameters()]
    WeightedBackward(parameters, num_tasks=2, process_group=True)


def other_frozen(rank: int, ranks: int) -> None:
    model = network()
    model.heads[1].bias.requires_grad_(rank != ranks - 1)
    optimizer_of(model, process_group=True)


def other_group(rank: int, ranks: int) -> None:
    _, optimizer = made()
    optimizer.add_param_group({"params": [torch.ones(3 + (rank == ranks - 1), requires_grad=True)]})


def frozen_later(rank: int, ranks: int, kind: str) -> None:
    """On the last rank, after a step."""
    model = Towers()
    step = stepper(kind, model)
    step(batch_of(rank))
    model.trunk[0].weight.requires_grad_(rank != ranks - 1)
    step(batch_of(rank))


def failing(rank: int, ranks: int, kind: str) -> None:
    """The last rank has no mini-batch, and says so."""
    model = Towers()
    stepper(kind, model)(batch_of(rank) if rank != ranks - 1 else torch.zeros(0, 3))


def prioritized(model: Towers, **options: Any) -> ConnectionStrengthFused:
    """Without per-task norms, so that any model will do."""
    parameters = model.parameters()
    return ConnectionStrengthFused(
        parameters, connections=[], num_tasks=TASKS, total_steps=10, schedule=half, lr=1e-2, **options
    )


def stepper(kind: str, model: Towers) -> Callable[[Tensor], object]:
    """A step of one of the four classes on a batch, by a closure."""
    if kind == "weighted":
        optimizer = weighted(model, CAGrad(), process_group=True)
        return lambda batch: optimizer.step(lambda: model.losses(batch))
    if kind == "losses":
        early = weighted(model, UncertaintyWeighting(), process_group=True)
        return lambda batch: early.step(lambda: model.losses(batch))
    if kind == "mt2o":
        many = MT2OFused(
            model.parameters(), num_tasks=3, num_subproblems=3, preferences=CORNERS, transfer=None, process_group=True
        )
        return lambda batch: many.step(lambda: model.losses(batch))
    if kind == "priority":
        priority = prioritized(model, process_group=True)
        return lambda batch: priority.step(lambda task: model.losses(batch)[task])
    backward = WeightedBackward(model.groups(), num_tasks=3, weighting=CAGrad(), process_group=True)
    return lambda batch: backward(model.losses(batch) if len(batch) else [])


KINDS = ["weighted", "losses", "mt2o", "priority", "backward"]


def absent_on_one(rank: int, ranks: int, kind: str) -> None:
    """The last rank has no data of task 1."""
    model = Towers()
    if kind == "mt2o":
        rows = MT2OFused(
            model.parameters(), num_tasks=3, num_subproblems=3, preferences=CORNERS, transfer=None, process_group=True
        )
        for k in rows.subproblems():
            losses = model.losses(batch_of(rank))
            rows.backward([losses[0], None if k == 2 and rank == ranks - 1 else losses[1], losses[2]])
        rows.step()
        return
    weighting = UncertaintyWeighting() if kind == "losses" else CAGrad()
    backward = WeightedBackward(model.groups(), num_tasks=3, weighting=weighting, process_group=True)
    optimizer = None if kind == "backward" else weighted(model, type(weighting)(), process_group=True)
    losses = model.losses(batch_of(rank))
    given = [None if task == 1 and rank == ranks - 1 else loss for task, loss in enumerate(losses)]
    if optimizer is None:
        backward(given)
    else:
        optimizer.backward(given)
        optimizer.step()


def backward_missing(rank: int, ranks: int, name: str) -> None:
    model, optimizer = made(weighting=WEIGHTINGS[name]())
    if rank != ranks - 1:
        optimizer.backward(model.losses(batch_of(rank)))
    optimizer.step()


def backward_twice(rank: int, ranks: int) -> None:
    model = Towers()
    optimizer = MT2OFused(
        model.parameters(), num_tasks=3, num_subproblems=3, preferences=CORNERS, transfer=None, process_group=True
    )
    for k in optimizer.subproblems():
        for _ in range(1 + (k == 1 and rank == ranks - 1)):
            optimizer.backward(model.losses(batch_of(rank)))
    optimizer.step()


def second_backward(rank: int, ranks: int, name: str) -> None:
    """One call more on the last rank, before the step."""
    model, optimizer = made(weighting=WEIGHTINGS[name]())
    for _ in range(1 + (rank == ranks - 1)):
        optimizer.backward(model.losses(batch_of(rank)))
    optimizer.step()


def second_loop(rank: int, ranks: int) -> None:
    """One loop over tasks more on the last rank, before the step."""
    model, optimizer = made()
    for _ in range(1 + (rank == ranks - 1)):
        for task in optimizer.tasks():
            optimizer.backward(model.losses(batch_of(rank))[task])
    optimizer.step()


def losses_missing(rank: int, ranks: int, kind: str) -> None:
    """The last rank gives one loss too few, in a call of its own before the step."""
    model = Towers()
    losses = model.losses(batch_of(rank))[: 2 if rank == ranks - 1 else 3]
    if kind == "mt2o":
        rows = MT2OFused(
            model.parameters(), num_tasks=3, num_subproblems=3, preferences=CORNERS, transfer=None, process_group=True
        )
        for _ in rows.subproblems():
            rows.backward(losses)
        rows.step()
        return
    weighting = UncertaintyWeighting() if kind == "losses" else CAGrad()
    optimizer = weighted(model, weighting, process_group=True)
    optimizer.backward(losses)
    optimizer.step()


def other_preferences(rank: int, ranks: int, kind: str) -> None:
    """Set in the middle of a run, others on the last rank."""
    row = [0.2, 0.3, 0.5] if rank == ranks - 1 else [0.5, 0.3, 0.2]
    if kind == "mt2o":
        rows = MT2OFused(Towers().parameters(), num_tasks=3, preferences=FIVE, transfer=None, process_group=True)
        rows.preferences = [*CORNERS, row, row]  # type: ignore[assignment]
    elif kind == "backward":
        backward = WeightedBackward(Towers().groups(), num_tasks=3, process_group=True)
        backward.preferences = row  # type: ignore[assignment]
    else:
        made()[1].preferences = row  # type: ignore[assignment]


def epoch_missing(rank: int, ranks: int) -> None:
    model, optimizer = made(weighting=DWA())
    if rank != ranks - 1:
        optimizer.epoch_end()
    optimizer.step(lambda: model.losses(batch_of(rank)))


FAILURES = {"backward": "ValueError: expected losses of shape [3]"}
DIFFERENT: dict[str, tuple[Check, Sequence[str]]] = {
    "tasks": (other_tasks, ["num_tasks: ", "2", "3"]),
    "weighting": (other_weighting, ["weighting: ", "CAGrad(c=0.4", "CAGrad(c=0.5"]),
    "base": (other_base, ["base: ", "SGD", "Adam"]),
    "lr": (other_lr, ["parameter group 0 lr: ", "0.01", "0.02"]),
    "order": (other_order, ["parameter 0 shape: ", "[3, 4]", "[2]"]),
    **{
        f"order of equal shapes, {kind}": (partial(other_order_of_equal_shapes, kind=kind), ["in another order"])
        for kind in ("mt2o", "backward", "group")
    },
    **{
        f"loaded, {kind}": (partial(loaded_on_one, kind=kind), ["was a checkpoint loaded", "parameter 0 checksum"])
        for kind in KINDS
    },
    "masks set on one rank": (other_masks, ["checksums of the masks"]),
    "number": (other_number, ["number of parameters: ", "4", "2"]),
    "frozen": (other_frozen, ["requires_grad: ", "True", "False"]),
    "group": (other_group, ["parameter 0 shape: ", "[3]", "[4]"]),
    **{f"frozen later, {kind}": (partial(frozen_later, kind=kind), ["frozen parameters: ", "[0]"]) for kind in KINDS},
    **{
        f"absent task, {kind}": (partial(absent_on_one, kind=kind), ["tasks without a loss: ", "[]", "[1]"])
        for kind in ("weighted", "losses")
    },
    "absent task, mt2o": (partial(absent_on_one, kind="mt2o"), ["tasks without a loss of subproblem 2: ", "[1]"]),
    "absent task, backward": (partial(absent_on_one, kind="backward"), ["call: ", "without tasks [1]"]),
    "missing backward": (partial(backward_missing, name="gram"), ["failed: RuntimeError: step() needs gradients"]),
    "missing backward, losses": (partial(backward_missing, name="losses"), ["failed: RuntimeError: step() needs"]),
    "one backward more": (backward_twice, ["number of backward calls of subproblem 1: ", "1", "2"]),
    "one backward more, gram": (partial(second_backward, name="gram"), ["number of backward calls of subproblem 0: "]),
    "one backward more, losses": (
        partial(second_backward, name="losses"),
        ["failed: RuntimeError: expected one backward() before a step"],
    ),
    "one loop more": (second_loop, ["number of backward calls of subproblem 0: ", "1", "2"]),
    **{
        f"losses missing, {kind}": (
            partial(losses_missing, kind=kind),
            ["failed: ValueError: expected losses of shape [3]"],
        )
        for kind in ("weighted", "losses", "mt2o")
    },
    **{
        f"preferences set, {kind}": (partial(other_preferences, kind=kind), ["preferences: ", "0.2, 0.3, 0.5"])
        for kind in ("mt2o", "weighted", "backward")
    },
    "missing epoch": (epoch_missing, ["number of epochs: ", "1", "0"]),
    **{
        f"failing, {kind}": (
            partial(failing, kind=kind),
            [f"failed: {FAILURES.get(kind, 'RuntimeError: mat1 and mat2')}"],
        )
        for kind in KINDS
    },
}


# ---------------------------------------------------------------------- what is not a number, what is not said
def nan_on_one(rank: int, ranks: int, kind: str) -> list[list[Tensor]]:
    """Values before the step, after it, and after one of finite numbers."""
    model = Towers()
    step = stepper(kind, model)
    before = values(model)
    bad = batch_of(rank)
    bad[0, 0] = torch.nan if rank == ranks - 1 else 0.0
    step(bad)
    after = values(model)
    if kind == "backward":
        return [before, after, [p.grad.clone() for p in model.parameters()]]  # type: ignore[union-attr]
    step(batch_of(rank))
    return [before, after, values(model)]


def infinite_under_scaler(rank: int, ranks: int) -> dict[str, Any]:
    model = Towers()
    optimizer = weighted(model, PCGrad(), process_group=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = values(model)
    losses = model.losses(batch_of(rank))
    losses[1] = losses[1] * (float("inf") if rank == ranks - 1 else 1.0)
    optimizer.backward(losses, scaler=scaler)
    scaler.step(optimizer)
    scaler.update()
    return {"values": values(model), "before": before, "scale": scaler.get_scale()}


def unused_on_one(rank: int, ranks: int) -> dict[str, Any]:
    """A parameter that only the last rank uses gets its part of the mean on all; one that none uses gets none."""
    p, q, never = (nn.Parameter(torch.ones(3)) for _ in range(3))
    optimizer = WeightedFused([p, q, never], num_tasks=2, weighting=CAGrad(), base=SGD(), lr=1.0, process_group=True)
    both = p + q if rank == ranks - 1 else p
    optimizer.step(lambda: [both.sum(), 2 * both.sum()])
    found = [p.detach().clone(), q.detach().clone(), never.detach().clone()]
    return {"values": found, "weights": optimizer.weights, "state": [one in optimizer.state for one in (p, q, never)]}


def no_group(rank: int, ranks: int, kind: str, process_group: Any = None) -> None:
    """Two steps."""
    model = Towers(num_tasks=TASKS)
    losses = partial(model.losses, batch_of(rank))
    for_all: dict[str, Any] = {"num_tasks": TASKS, "process_group": process_group}
    if kind == "backward":
        backward = WeightedBackward(model.groups(), weighting=CAGrad(), **for_all)
        backward(losses())
        backward(losses())
        return
    closure: Any = losses
    if kind == "priority":
        optimizer: Any = prioritized(model, process_group=process_group)
        closure = lambda task: losses()[task]  # noqa: E731
    elif kind == "mt2o":
        optimizer = MT2OFused(model.parameters(), num_subproblems=3, preferences=CORNERS, transfer=None, **for_all)
    else:
        optimizer = WeightedFused(model.parameters(), weighting=CAGrad(), **for_all)
    for _ in range(2):
        optimizer.step(closure)


def draws_of_their_own(rank: int, ranks: int, *, seeded: bool) -> None:
    """Points of a front whose gradients somebody else averages over the ranks."""
    model = Towers(num_tasks=TASKS)
    generator = torch.Generator().manual_seed(3) if seeded else None
    optimizer = MT2OFused(
        model.parameters(), num_tasks=TASKS, front="vertices", process_group=False, generator=generator
    )
    for _ in range(2):
        optimizer.step(lambda: model.losses(batch_of(rank)))


def points_in_a_wrapper(rank: int, ranks: int) -> str:
    model = Towers()
    losses = nn.parallel.DistributedDataParallel(Losses(model, model.losses))
    optimizer = MT2OFused(model.parameters(), num_tasks=3, front="vertices", process_group=False)
    try:
        optimizer.backward(losses(batch_of(rank)))
    except RuntimeError as error:
        return str(error)
    return "no error"


def owners(rank: int, ranks: int) -> dict[str, Any]:
    """With running statistics, and so strengths, that are this rank's own."""
    model = network(rank).eval()
    optimizer = optimizer_of(model, process_group=True)
    for _ in range(STEPS):
        optimizer.step(Batches(rank).loss(model))
    strengths = [connection.strengths() for connection in optimizer._connections]
    return {"values": values(model), "shares": optimizer.history().shares, "strengths": strengths}


def one_batch_less(rank: int, ranks: int) -> int:
    """The number of steps, one less on the last rank."""
    steps = STEPS - (rank == ranks - 1)
    model, optimizer = made()
    for seed in range(steps):
        optimizer.backward(model.losses(batch_of(seed)))
        optimizer.step()
    return steps


def own_group(rank: int, ranks: int) -> list[Tensor] | str:
    """The first and the last rank alone; all have to make the group."""
    group = dist.new_group([0, ranks - 1])
    model = Towers(seed=rank)
    if rank not in (0, ranks - 1):
        try:
            weighted(model, CAGrad(), process_group=group)
        except ValueError as error:
            return str(error)
    optimizer = weighted(model, CAGrad(), process_group=group)
    for seed in range(STEPS):
        optimizer.step(lambda: model.losses(batch_of(10 * seed + rank)))  # noqa: B023
    return values(model)


CALLS = ["weighted", "mt2o", "priority", "backward"]
OTHERS: dict[str, Check] = {
    **{f"nan, {kind}": partial(nan_on_one, kind=kind) for kind in KINDS},
    "infinite": infinite_under_scaler,
    "unused": unused_on_one,
    **{f"no group, {kind}": partial(no_group, kind=kind) for kind in CALLS},
    **{f"taken care of, {kind}": partial(no_group, kind=kind, process_group=False) for kind in CALLS},
    "own draws": partial(draws_of_their_own, seeded=False),
    "the same draws": partial(draws_of_their_own, seeded=True),
    "points in a wrapper": points_in_a_wrapper,
    "owners": owners,
    "own group": own_group,
}
CHECKS: dict[str, Check] = {**RUNS, **{name: check for name, (check, _) in DIFFERENT.items()}, **OTHERS}
