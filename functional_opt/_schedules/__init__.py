from .constant import Constant as Constant, WarmupConstant as WarmupConstant
from .cosine import Cosine as Cosine, CosineDecay as CosineDecay, SGDR as SGDR
from .exponential import (
    ExponentialDecay as ExponentialDecay,
    WarmupExponentialDecay as WarmupExponentialDecay,
)
from .inverse import Inv as Inv
from .inverse_sqrt import InverseSqrt as InverseSqrt
from .onecycle import CosineOnecycle as CosineOnecycle, LinearOnecycle as LinearOnecycle
from .piecewise import (
    Boundary as Boundary,
    PiecewiseConstant as PiecewiseConstant,
    PiecewiseInterpolate as PiecewiseInterpolate,
)
from .polynomial import Linear as Linear, Polynomial as Polynomial
from .power import Power as Power
from .sequence import Phase as Phase, Sequence as Sequence
from .stable import Cooldown as Cooldown, WarmupStableDecay as WarmupStableDecay
