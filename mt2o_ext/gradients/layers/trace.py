"""The graph behind losses: which gradients of parameters go through recorded calls of layers, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor
from torch.autograd.graph import Node

from .record import Call, call_at, forget_call, was_forgotten

__all__ = ["Trace", "traced"]

LEAF = "torch::autograd::AccumulateGrad"
LARGEST = 32  # nodes of one call of a layer; more are no layer


@dataclass(frozen=True)
class Trace:
    """All that the graph behind losses tells.

    Attributes:
        calls: recorded calls and the nodes of their outputs.
        uses: for each parameter, the calls and the name that it has there, if all of its gradient goes through them.
        leaves: all leaves that the losses depend on.
        hidden: the graph has an operation whose backward reaches parameters that it does not show.
        freed: an earlier backward dropped the records.
    """

    calls: list[tuple[Node, Call]]
    uses: dict[Tensor, list[tuple[int, str]]] = field(default_factory=dict)
    leaves: set[Tensor] = field(default_factory=set)
    hidden: bool = False
    freed: bool = False

    def usable(self, fits: Callable[[Call], bool]) -> dict[Tensor, list[tuple[int, str]]]:
        """The parameters all of whose calls have a formula and are such, and their uses."""
        good = [call.fits and call.unchanged() and fits(call) for _, call in self.calls]
        return {p: found for p, found in self.uses.items() if all(good[number] for number, _ in found)}

    def forget(self) -> None:
        """Drop the records."""
        for node, _ in self.calls:
            forget_call(node)


def traced(losses: Iterable[Tensor]) -> Trace:
    """Follow the graph from losses to leaves.

    A parameter is in ``uses`` only if every edge of the graph that leads to its accumulation lies inside of a recorded
    call: one that is used outside of its layer as well (a penalty, a tied weight in a function call) is not.
    """
    graph = _graph(losses)
    calls = [(node, call) for node in graph if (call := call_at(node)) is not None]
    leaf_of: dict[Node, Tensor] = {node: cast(Any, node).variable for node in graph if node.name() == LEAF}
    inner: set[Node] = set()  # inside of calls
    allowed: set[tuple[Node, Node]] = set()  # edges inside of calls, or from there to the layer's own parameters
    uses: dict[Tensor, list[tuple[int, str]]] = {}
    for number, (node, call) in enumerate(calls):
        if (edges := _edges_within(node, call, graph, leaf_of)) is None:
            continue
        allowed |= edges
        inner |= {target for _, target in edges}
        reached = {target for _, target in edges}
        for name, p in call.parameters.items():
            if any(leaf_of.get(target) is p for target in reached):
                uses.setdefault(p, []).append((number, name))
    outside: set[Tensor] = set()
    for node, parents in graph.items():
        for parent in parents:
            if (parent in inner or parent in leaf_of) and (node, parent) not in allowed:
                outside |= _leaves_below(parent, inner, graph, leaf_of)
    uses = {p: found for p, found in uses.items() if p not in outside}
    hidden = any(node.name() == "CheckpointFunctionBackward" for node in graph)
    return Trace(calls, uses, set(leaf_of.values()), hidden, any(map(was_forgotten, graph)))


def _graph(losses: Iterable[Tensor]) -> dict[Node, list[Node]]:
    """Every node behind the losses, and where its edges lead."""
    graph: dict[Node, list[Node]] = {}
    queue = [loss.grad_fn for loss in losses if loss.grad_fn is not None]
    while queue:
        node = queue.pop()
        if node in graph:
            continue
        graph[node] = [parent for parent, _ in node.next_functions if parent is not None]
        queue.extend(graph[node])
    return graph


def _edges_within(
    output: Node, call: Call, graph: dict[Node, list[Node]], leaf_of: dict[Node, Tensor]
) -> set[tuple[Node, Node]] | None:
    """The edges between the output of a call and its parameters; None if it is no plain call of the layer."""
    edges: set[tuple[Node, Node]] = set()
    own = set(map(id, call.parameters.values()))
    seen, queue = {output}, [output]
    while queue:
        node = queue.pop()
        for parent in graph[node]:
            if parent is call.behind:
                continue
            edges.add((node, parent))
            if (leaf := leaf_of.get(parent)) is not None:
                if id(leaf) not in own:
                    return None
            elif call_at(parent) is not None or len(seen) > LARGEST:
                return None
            elif parent not in seen:
                seen.add(parent)
                queue.append(parent)
    return edges


def _leaves_below(
    node: Node, inner: set[Node], graph: dict[Node, list[Node]], leaf_of: dict[Node, Tensor]
) -> set[Tensor]:
    """The leaves that a node inside of calls leads to without leaving them."""
    found, queue = set(), [node]
    while queue:
        here = queue.pop()
        if here in leaf_of:
            found.add(leaf_of[here])
        queue.extend(parent for parent in graph[here] if parent in inner)
    return found
