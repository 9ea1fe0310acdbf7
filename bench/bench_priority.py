"""The priority rule of connection strength over all layers of a network, against torch and against one read.

python -m bench.bench_priority [--quick]
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bench import floor
from bench.measure import interleaved, lower_of, milliseconds, ratio, table, write
from bench.network_shapes import hrnet18, resnet50
from mt2o_ext import ops

NOTES = (
    "Convolutions and linear layers with a random owner for each output channel, in place (the sum replaces the first "
    "task's gradient). x floor: median per-round ratio to the bytes of one read of T rows and one write at the best of "
    "streaming copy, streaming triad and in-place scale of the same round; x twin: to a loop that adds up T rows. "
    "layers: the same group-level rule in torch, vectorised over the channels of a layer; groups: a loop over owners "
    "and tasks, as it is usually written; channels: a loop over channels (measured once)."
)


class Network:
    """Gradients of T tasks on the layers of a network, and random owners."""

    def __init__(self, shapes: Sequence[tuple[int, ...]], tasks: int, device: torch.device | str = "cpu") -> None:
        offsets, row, _ = ops.plan_layout([math.prod(shape) for shape in shapes])
        records, self.layers, channels = [], [], 0
        for shape, offset in zip(shapes, offsets, strict=True):
            numel = math.prod(shape)
            if len(shape) == 1:  # biases and normalisation
                records.append(ops.PriorityRecord(-1, 0, 1, offset, numel, 1))
                continue
            length = numel // shape[0]
            records.append(ops.PriorityRecord(len(self.layers), channels, shape[0], offset, length, 1))
            self.layers.append((offset, channels, shape[0], length))
            channels += shape[0]
        self.plain = [(record.offset, record.offset + record.numel) for record in records if record.layer < 0]
        self.records, self.chunks = (table.to(device) for table in ops.plan_priority(records))
        self.grads = torch.randn(tasks, row, device=device)
        self.owners = torch.randint(tasks, (channels,), device=device)
        self.dots = torch.zeros(len(self.chunks), tasks, tasks, dtype=torch.float64, device=device)
        self.coefficients = torch.zeros(len(self.layers), tasks, dtype=torch.float64, device=device)
        self.out = torch.zeros(row, device=device)

    def ours(self) -> None:
        tables = self.owners, self.records, self.chunks
        ops.priority_(self.grads[0], self.dots, self.coefficients, self.grads, *tables)

    def parts(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Of each layer: gradients [T, N, M], owners [N], output [N, M]."""
        return [
            (
                self.grads[:, offset : offset + n * m].view(-1, n, m),
                self.owners[channel : channel + n],
                self.out[offset : offset + n * m].view(n, m),
            )
            for offset, channel, n, m in self.layers
        ]

    def add_plain(self) -> None:
        for begin, end in self.plain:
            torch.sum(self.grads[:, begin:end], 0, out=self.out[begin:end])

    def by_layers(self) -> None:
        tasks = len(self.grads)
        for grads, owners, out in self.parts():
            own = grads[owners, torch.arange(len(owners), device=owners.device)]
            products = torch.einsum("tnm,nm->nt", grads, own)
            dots = products.new_zeros(tasks, tasks).index_add_(0, owners, products)
            norms = dots.diagonal()
            factors = torch.where(norms > 0, dots.clamp(max=0).sum(1).neg() / norms, 0.0)
            torch.sum(grads, 0, out=out)
            out.addcmul_(factors[owners][:, None], own)
        self.add_plain()

    def by_groups(self) -> None:
        for grads, owners, out in self.parts():
            for task in range(len(grads)):
                mask = owners == task
                own = grads[task, mask]
                total, norm = own.clone(), (own * own).sum()
                for other in range(len(grads)):
                    if other != task:
                        gradient = grads[other, mask]
                        product = (gradient * own).sum()
                        total += gradient - torch.where(product < 0, product / norm, 0.0) * own
                out[mask] = total
        self.add_plain()

    def by_channels(self) -> None:
        tasks = len(self.grads)
        for grads, owners, out in self.parts():
            dots = torch.zeros(tasks, tasks)
            of = owners.tolist()
            for channel, task in enumerate(of):
                dots[task] += grads[:, channel] @ grads[task, channel]
            norms = dots.diagonal()
            factors = torch.where(norms > 0, dots.clamp(max=0).sum(1).neg() / norms, 0.0).tolist()
            for channel, task in enumerate(of):
                out[channel] = grads[:, channel].sum(0) + factors[task] * grads[task, channel]
        self.add_plain()


def measure(name: str, shapes: list[tuple[int, ...]], tasks: int, rounds: int) -> dict[str, Any]:
    network, threads = Network(shapes, tasks), torch.get_num_threads()
    ours = {
        "ours": network.ours,
        "twin": floor.row_sum(network.out, network.grads, threads),
        **floor.copies(4 * (tasks + 1) * network.grads.shape[1], threads),
    }
    seconds = interleaved(ours, rounds)
    fastest = lower_of(*(seconds[kind] for kind in ("copy", "triad", "scale")))
    result: dict[str, Any] = {"network": name, "T": tasks, "ms": milliseconds(seconds["ours"])}
    result |= {"x floor": ratio(seconds["ours"], fastest), "x twin": ratio(seconds["ours"], seconds["twin"])}
    peers = interleaved(
        {"ours": network.ours, "layers": network.by_layers, "groups": network.by_groups}, max(3, rounds // 3)
    )
    result |= {f"{peer} / ours": ratio(peers[peer], peers["ours"]) for peer in ("layers", "groups")}
    begin = time.perf_counter()
    network.by_channels()
    once = [time.perf_counter() - begin] * len(peers["ours"])
    return {**result, "channels / ours": round(ratio(once, peers["ours"]))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the smaller network only, few rounds")
    quick = parser.parse_args().quick
    networks = {"HRNet-18": hrnet18()} if quick else {"ResNet-50": resnet50(), "HRNet-18": hrnet18()}
    rows = [
        measure(name, shapes, tasks, 5 if quick else 21) for name, shapes in networks.items() for tasks in (2, 3, 5)
    ]
    print(table(rows))
    if not quick:
        print(write("priority", rows, NOTES))


if __name__ == "__main__":
    main()
