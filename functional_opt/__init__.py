"""Optimizers and schedules as values, and stage-local updates for Optax."""

from typing import TYPE_CHECKING as _TYPE_CHECKING

from . import testing as testing
from ._base import (
    AbstractOptimizer as AbstractOptimizer,
    AbstractSchedule as AbstractSchedule,
)
from ._checkpoints.checkpoints import Checkpoints as Checkpoints, Restored as Restored
from ._clips import (
    AdaptiveClip as AdaptiveClip,
    ClipByBlockRMS as ClipByBlockRMS,
    ClipByNorm as ClipByNorm,
    ClipByRecentNorms as ClipByRecentNorms,
)
from ._codec.errors import ConfigError as ConfigError
from ._composition.frozen import Frozen as Frozen
from ._composition.held import (
    AbstractPartitionedOptimizer as AbstractPartitionedOptimizer,
)
from ._durations import Fraction as Fraction, Steps as Steps
from ._extra_args import ExtraArg as ExtraArg
from ._factories.module import from_optax as from_optax
from ._groups import Group as Group, Groups as Groups
from ._metrics import Metrics as Metrics
from ._optimizers import (
    ACProp as ACProp,
    AdaBelief as AdaBelief,
    AdaDelta as AdaDelta,
    Adafactor as Adafactor,
    AdaGrad as AdaGrad,
    Adam as Adam,
    AdaMax as AdaMax,
    AdaMaxW as AdaMaxW,
    AdamMini as AdamMini,
    AdamW as AdamW,
    Adan as Adan,
    AdEMAMix as AdEMAMix,
    ADOPT as ADOPT,
    AMSGrad as AMSGrad,
    Blocks as Blocks,
    Cautious as Cautious,
    CautiousDecay as CautiousDecay,
    COCOB as COCOB,
    DAdaptAdamW as DAdaptAdamW,
    DoG as DoG,
    DoWG as DoWG,
    DPSGD as DPSGD,
    Fromage as Fromage,
    GaLore as GaLore,
    Hyperball as Hyperball,
    KahanSummation as KahanSummation,
    Kron as Kron,
    Lamb as Lamb,
    Lars as Lars,
    LBFGS as LBFGS,
    Lion as Lion,
    Lookahead as Lookahead,
    MADGRAD as MADGRAD,
    Mars as Mars,
    Mechanize as Mechanize,
    Momo as Momo,
    MomoAdam as MomoAdam,
    Muon as Muon,
    NAdam as NAdam,
    NAdamW as NAdamW,
    NoisySGD as NoisySGD,
    NorMuon as NorMuon,
    Novograd as Novograd,
    OptimisticAdam as OptimisticAdam,
    OptimisticGradientDescent as OptimisticGradientDescent,
    PolyakSGD as PolyakSGD,
    Prodigy as Prodigy,
    QKClip as QKClip,
    Quad as Quad,
    RAdam as RAdam,
    RMSProp as RMSProp,
    Rprop as Rprop,
    ScheduleFree as ScheduleFree,
    ScheduleFreeAdamW as ScheduleFreeAdamW,
    ScheduleFreeSGD as ScheduleFreeSGD,
    Scion as Scion,
    SGD as SGD,
    SignSGD as SignSGD,
    Signum as Signum,
    SimplifiedAdEMAMix as SimplifiedAdEMAMix,
    Skew as Skew,
    SM3 as SM3,
    SOAP as SOAP,
    Sophia as Sophia,
    StochasticRounding as StochasticRounding,
    Yogi as Yogi,
)
from ._recipe import Recipe as Recipe
from ._registry import Registry as Registry
from ._schedules import (
    Boundary as Boundary,
    Constant as Constant,
    Cooldown as Cooldown,
    Cosine as Cosine,
    CosineDecay as CosineDecay,
    CosineOnecycle as CosineOnecycle,
    ExponentialDecay as ExponentialDecay,
    Inv as Inv,
    InverseSqrt as InverseSqrt,
    Linear as Linear,
    LinearOnecycle as LinearOnecycle,
    Phase as Phase,
    PiecewiseConstant as PiecewiseConstant,
    PiecewiseInterpolate as PiecewiseInterpolate,
    Polynomial as Polynomial,
    Power as Power,
    Sequence as Sequence,
    SGDR as SGDR,
    WarmupConstant as WarmupConstant,
    WarmupExponentialDecay as WarmupExponentialDecay,
    WarmupStableDecay as WarmupStableDecay,
)
from ._slicing.errors import CrossStageError as CrossStageError
from ._spikes import SkipSpikes as SkipSpikes
from ._stages.by_devices import partition_by_devices as partition_by_devices
from ._stages.extra import OnStage as OnStage
from ._stages.local import stage_local as stage_local, StageLocal as StageLocal
from ._stages.open_step import OpenStep as OpenStep
from ._stages.partition import partition as partition, StagePartition as StagePartition
from ._stages.program import StageProgram as StageProgram
from ._stages.staged import Staged as Staged
from ._stages.whole import WholeTransformation as WholeTransformation
from ._where import AllOf as AllOf, AnyOf as AnyOf, Not as Not, Where as Where


if _TYPE_CHECKING:
    __version__: str


def __getattr__(name: str) -> str:
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib.metadata

    return importlib.metadata.version(__name__)
