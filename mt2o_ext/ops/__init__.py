"""The kernel families, as typed functions on tensors.

Every function exists twice: compiled (``torch.ops.mt2o_ext``) and in plain torch (:mod:`mt2o_ext.ops.reference`, the
oracle of the tests and what runs where nothing was compiled).  The functions here choose by the device of their first
argument, tell autograd what was changed, and carry the shapes for tracing (fakes).

K rows (subproblems), T tasks, P columns (parameters of one model, with padding), S segments (tensors of the model), C
chunks.  Matrices of rows have contiguous rows, a multiple of 16 elements apart, and begin at a multiple of 16 bytes (as
all memory of torch's does, but not every view of it); ``chunks`` int64 [C, 3] (segment, begin, end) comes from
:func:`plan_layout`.  Small tables are float64.  All results are written into arguments: in steady state nothing is
allocated.

Gradients [K, T, P] lie in one buffer, or each tensor of them somewhere else: then a table ``addresses`` says where
(:func:`address_table`), nothing is copied, and the results have the same bits.  The argument that would be the buffer
then tells the shape, the dtype and the device alone: ``torch.empty(1, dtype=...).expand(K, T, P)`` takes no memory.
"""

from .addresses import NO_GRADIENT, address_table, can_read_addresses
from .combine import combine_
from .draw import draw_
from .elements import drop_signs_, excess_, feed_, track_
from .finite import finite_
from .gram import gram_, gram_accuracy, length_accuracy
from .harmony import EXCHANGE_BINS, EXCHANGE_STATE, exchange_, harmony_
from .judge import count_, judge_, settle_
from .layout import cut_chunks, plan_layout
from .mask import mask_
from .priority import PriorityRecord, plan_priority, priority_
from .rules import FIELDS, MOMENTS, NUM_CONSTANTS, SQUARES, Rule
from .solve import (
    conflict_averse_,
    descent_,
    dual_cone_,
    eigen_,
    minimum_norm_,
    power_barrier_,
    project_,
    workspace_size,
)
from .step import Order, step_
from .transfer import transfer_

__all__ = [
    "EXCHANGE_BINS",
    "EXCHANGE_STATE",
    "FIELDS",
    "MOMENTS",
    "NO_GRADIENT",
    "NUM_CONSTANTS",
    "SQUARES",
    "Order",
    "PriorityRecord",
    "Rule",
    "address_table",
    "can_read_addresses",
    "combine_",
    "conflict_averse_",
    "count_",
    "cut_chunks",
    "descent_",
    "draw_",
    "drop_signs_",
    "dual_cone_",
    "eigen_",
    "excess_",
    "exchange_",
    "feed_",
    "finite_",
    "gram_",
    "gram_accuracy",
    "harmony_",
    "judge_",
    "length_accuracy",
    "mask_",
    "minimum_norm_",
    "plan_layout",
    "plan_priority",
    "power_barrier_",
    "priority_",
    "project_",
    "settle_",
    "step_",
    "track_",
    "transfer_",
    "workspace_size",
]
