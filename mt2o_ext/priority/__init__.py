"""Connection strength: which task has priority in which channel of a shared layer."""

from .connection import Connection
from .find import Connections, find_connections
from .history import PriorityHistory
from .owners import channel_owners
from .schedule import mixed, phase_one, phase_two, sequential
from .task_norm import (
    TaskBatchNorm,
    TaskBatchNorm1d,
    TaskBatchNorm2d,
    TaskBatchNorm3d,
    TaskGroupNorm,
    TaskLayerNorm,
    TaskNorm,
    TaskRMSNorm,
    select_task,
)

__all__ = [
    "Connection",
    "Connections",
    "PriorityHistory",
    "TaskBatchNorm",
    "TaskBatchNorm1d",
    "TaskBatchNorm2d",
    "TaskBatchNorm3d",
    "TaskGroupNorm",
    "TaskLayerNorm",
    "TaskNorm",
    "TaskRMSNorm",
    "channel_owners",
    "find_connections",
    "mixed",
    "phase_one",
    "phase_two",
    "select_task",
    "sequential",
]
