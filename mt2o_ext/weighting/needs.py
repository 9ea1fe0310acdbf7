"""The flags by which a weighting asks for what it reads."""

from __future__ import annotations

from enum import Flag, auto


class Needs(Flag):
    """Flags of what a weighting reads: an optimizer skips every pass that nobody needs.

    LOSSES: ``context.losses``. GRAM: ``context.gram``. DIAGONAL: only its diagonal (|g_t|^2). SEGMENTS:
    ``context.segments``. CROSS: ``context.cross``, two mini-batches. ROWS: `Weighting.transform_` changes the task
    gradients before their Gram matrix is taken. FEEDBACK: `Weighting.after_step`. EPOCHS: ``context.epoch`` counts.
    STEPS: ``context.step`` counts. DRAWS: ``context.draw``. POINTS: each row of ``context.preferences`` is the point of
    a front that losses and gradients of the row were computed at, with no factor of it in them yet.

    Example:
        >>> CAGrad().needs is Needs.GRAM
        True
        >>> Needs.LOSSES in FAMO().needs
        True
    """

    NOTHING = 0
    LOSSES = auto()
    GRAM = auto()
    SEGMENTS = auto()
    DIAGONAL = auto()
    CROSS = auto()
    ROWS = auto()
    FEEDBACK = auto()
    EPOCHS = auto()
    STEPS = auto()
    DRAWS = auto()
    POINTS = auto()
