"""Shapes of the parameters of two networks that multi-task papers use, without the networks."""

from __future__ import annotations

from collections.abc import Iterator

Shape = tuple[int, ...]


def convolution(inputs: int, outputs: int, kernel: int) -> Iterator[Shape]:
    """A convolution without bias and the affine parameters of its normalisation."""
    yield (outputs, inputs, kernel, kernel)
    yield (outputs,)
    yield (outputs,)


def bottleneck(inputs: int, width: int, *, shortcut: bool) -> Iterator[Shape]:
    yield from convolution(inputs, width, 1)
    yield from convolution(width, width, 3)
    yield from convolution(width, 4 * width, 1)
    if shortcut:
        yield from convolution(inputs, 4 * width, 1)


def resnet50() -> list[Shape]:
    """161 tensors, 25.6 million parameters (He et al., 2016)."""
    shapes = list(convolution(3, 64, 7))
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += bottleneck(inputs, width, shortcut=block == 0)
            inputs = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


def high_resolution_module(widths: list[int]) -> Iterator[Shape]:
    """Four basic blocks in each branch, then every branch to the resolution of every other."""
    for width in widths:
        for _ in range(8):
            yield from convolution(width, width, 3)
    for to, width in enumerate(widths):
        for source, inputs in enumerate(widths):
            if source > to:
                yield from convolution(inputs, width, 1)
            for step in range(to - source):
                yield from convolution(inputs, width if step == to - source - 1 else inputs, 3)


def hrnet18() -> list[Shape]:
    """The trunk of HRNet-W18 (Wang et al., 2019), 9.6 million parameters."""
    shapes = [*convolution(3, 64, 3), *convolution(64, 64, 3)]
    for block in range(4):
        shapes += bottleneck(64 if block == 0 else 256, 64, shortcut=block == 0)
    widths = [18, 36, 72, 144]
    for branches, modules in ((2, 1), (3, 4), (4, 3)):
        before = 256 if branches == 2 else widths[branches - 2]
        if branches == 2:
            shapes += convolution(256, widths[0], 3)
        shapes += convolution(before, widths[branches - 1], 3)
        for _ in range(modules):
            shapes += high_resolution_module(widths[:branches])
    return shapes
