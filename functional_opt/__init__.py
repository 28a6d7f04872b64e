"""Optimizers and schedules as values, and stage-local updates for Optax."""

from . import testing as testing
from ._base import (
    AbstractOptimizer as AbstractOptimizer,
    AbstractSchedule as AbstractSchedule,
)
from ._optimizers import (
    Adafactor as Adafactor,
    Adam as Adam,
    AdamW as AdamW,
    Kron as Kron,
    Lion as Lion,
    Mars as Mars,
    Muon as Muon,
    Quad as Quad,
    RMSProp as RMSProp,
    Scion as Scion,
    SGD as SGD,
    Skew as Skew,
    SOAP as SOAP,
)
from ._recipe import Recipe as Recipe
from ._registry import Registry as Registry
from ._schedules import Constant as Constant, Cosine as Cosine, Linear as Linear
from ._stages.errors import CrossStageError as CrossStageError
from ._stages.extra import OnStage as OnStage
from ._stages.local import stage_local as stage_local, StageLocal as StageLocal
from ._stages.partition import partition as partition, StagePartition as StagePartition
from ._stages.program import StageProgram as StageProgram
from ._where import Where as Where
