"""Several processes without DDP's wrapper: the optimizer averages the tasks' gradients before it weights them.

torchrun --nproc-per-node 2 examples/ddp.py
"""

from __future__ import annotations

import torch
from problem import DEVICE, Model, accuracies, pairs, task_losses
from torch import distributed
from torch.utils.data import DataLoader, DistributedSampler

from mt2o_ext import WeightedFused


def main(epochs: int = 10) -> list[float]:
    distributed.init_process_group("nccl" if DEVICE.type == "cuda" else "gloo")
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    if DEVICE.type == "cuda":
        torch.cuda.set_device(rank % torch.cuda.device_count())  # DEVICE is that one from here on
    train, test = pairs()
    sampler = DistributedSampler(train, drop_last=True)  # as many mini-batches on each rank
    batches = DataLoader(train, batch_size=64 // ranks, sampler=sampler, drop_last=True)
    torch.manual_seed(rank)  # all start from the first rank's parameters, whatever they had
    model = Model().to(DEVICE)
    optimizer = WeightedFused(
        model.parameters(), num_tasks=2, weighting="upgrad", lr=3e-3, max_norm=1.0, process_group=True
    )
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for x, y in batches:
            optimizer.step(lambda x=x, y=y: task_losses(model, x, y))
    found = accuracies(model, test)
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    gathered = [torch.empty_like(weights) for _ in range(ranks)]
    distributed.all_gather(gathered, weights)
    assert all(torch.equal(one, weights) for one in gathered), "the ranks hold the same bits"
    if rank == 0:
        print(f"{ranks} ranks: accuracies {found[0]:.2f} and {found[1]:.2f}")
    distributed.destroy_process_group()
    return found


if __name__ == "__main__":
    main()
