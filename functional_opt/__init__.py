"""Optimizers and schedules as values, and stage-local updates for Optax."""

from ._base import (
    AbstractOptimizer as AbstractOptimizer,
    AbstractSchedule as AbstractSchedule,
)
from ._optimizers import Adam as Adam, AdamW as AdamW, Lion as Lion, SGD as SGD
from ._recipe import Recipe as Recipe
from ._registry import Registry as Registry
from ._schedules import Constant as Constant, Cosine as Cosine, Linear as Linear
from ._where import Where as Where
