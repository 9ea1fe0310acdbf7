"""Six trade-offs over several processes: each trains some of them, all know the front, and one file has everything.

torchrun --nproc-per-node 2 examples/subproblems_over_ranks.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from problem import DEVICE, Model, accuracies, loader, pairs, task_losses
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh

from mt2o_ext import MT2OFused, load_checkpoint, repeat, save_checkpoint


def train(folder: Path, epochs: int) -> list[float]:
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    mesh = init_device_mesh(DEVICE.type, (ranks,), mesh_dim_names=("subproblem",))
    torch.manual_seed(rank)  # mini-batches of its own; all start from the first rank's parameters
    data, test = pairs()
    batches = loader(data)
    batches.generator.manual_seed(rank)
    model = Model().to(DEVICE)
    optimizer = MT2OFused(
        model.parameters(), num_tasks=2, num_subproblems=6, front="rows", lr=3e-3, ema=0.95,
        subproblem_mesh=mesh["subproblem"],
    )  # fmt: skip
    print(f"rank {rank} of {ranks} trains the subproblems {list(optimizer.subproblems_here)}")
    stream = repeat(batches)
    for _ in range(epochs * len(batches)):
        optimizer.step(lambda: task_losses(model, *next(stream)))  # once for each of its subproblems

    state = optimizer.whole_state_dict()  # all ranks call this; the first one gets it
    if rank == 0:
        save_checkpoint(folder / "run.pt", model=model, optimizer=state)
    distributed.barrier()
    load_checkpoint(folder / "run.pt", optimizer=optimizer)  # each takes its part, on any number of ranks

    def evaluate() -> list[Tensor]:
        return task_losses(model, *test.tensors)

    front = optimizer.front(evaluate, ema=True, model=model)  # each evaluates its own, all get the front
    k = front.choose([0.5, 0.5])
    found = [0.0, 0.0]
    if k in optimizer.subproblems_here:
        with optimizer.subproblem(k, ema=True):
            found = accuracies(model, test)
    numbers = torch.tensor(found, device=DEVICE)
    distributed.all_reduce(numbers)
    if rank == 0:
        print(front)
        print(f"subproblem {k} of the front: accuracies {numbers[0]:.2f} and {numbers[1]:.2f}")
    return numbers.tolist()


def main(epochs: int = 6) -> list[float]:
    distributed.init_process_group("nccl" if DEVICE.type == "cuda" else "gloo")
    if DEVICE.type == "cuda":
        torch.cuda.set_device(distributed.get_rank() % torch.cuda.device_count())
    with tempfile.TemporaryDirectory() as folder:
        shared = [folder]
        distributed.broadcast_object_list(shared)  # the first rank's folder
        found = train(Path(shared[0]), epochs)
        distributed.barrier()
    distributed.destroy_process_group()
    return found


if __name__ == "__main__":
    main()
