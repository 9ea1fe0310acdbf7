"""Two-digit images: the data of `make demo`."""

from __future__ import annotations

from mt2o_ext.demo.digits import TASKS, make_pairs

from .base import Part, Problem
from .garments import LeNet, two_labels


def _parts() -> dict[str, Part]:
    pairs = make_pairs((20_000, 1_000, 2_000), seed=12345)
    parts = {"train": pairs.train, "validation": pairs.validation, "test": pairs.test}
    return {part: (each.tensors[0], each.tensors[1]) for part, each in parts.items()}


DIGITS = Problem(
    name="digits",
    title="Two-digit images, 18 x 18, 5,000 real MNIST digits (no conflict to speak of); LeNet",
    tasks=TASKS,
    rows=5,
    batch=16,
    steps=1000,
    main=(1.0, 1.0),
    tight=(0.5, 0.6),
    parts=_parts,
    net=LeNet,
    losses=two_labels,
)
