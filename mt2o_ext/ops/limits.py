"""Numbers of rows that the compiled kernels hold: those of csrc/core/arguments.h, for constructors to refuse more."""

__all__ = ["MAX_OWNERS", "MAX_ROWS", "MAX_TASKS"]

MAX_ROWS = 256  # subproblems of a step or transfer, task gradients of a Gram matrix
MAX_TASKS = 1024  # gradients that are combined
MAX_OWNERS = 64  # tasks of the priority rule
