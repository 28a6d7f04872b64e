"""Optimizers and schedules as values, and stage-local updates for Optax."""

from . import testing as testing
from ._base import (
    AbstractOptimizer as AbstractOptimizer,
    AbstractSchedule as AbstractSchedule,
)
from ._checkpoints.checkpoints import Checkpoints as Checkpoints, Restored as Restored
from ._optimizers import Adam as Adam, AdamW as AdamW, Lion as Lion, SGD as SGD
from ._recipe import Recipe as Recipe
from ._registry import Registry as Registry
from ._schedules import Constant as Constant, Cosine as Cosine, Linear as Linear
from ._stages.errors import CrossStageError as CrossStageError
from ._stages.extra import OnStage as OnStage
from ._stages.local import stage_local as stage_local, StageLocal as StageLocal
from ._stages.partition import partition as partition, StagePartition as StagePartition
from ._stages.program import StageProgram as StageProgram
from ._where import Where as Where
