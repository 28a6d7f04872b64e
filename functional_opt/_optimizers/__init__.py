from .accumulated import (
    AdaDelta as AdaDelta,
    AdaGrad as AdaGrad,
    MADGRAD as MADGRAD,
    SM3 as SM3,
)
from .adaptive import Adam as Adam, AdamW as AdamW, RMSProp as RMSProp
from .blockwise import AdamMini as AdamMini, Blocks as Blocks
from .cautious import Cautious as Cautious, CautiousDecay as CautiousDecay
from .distance import COCOB as COCOB, DoG as DoG, DoWG as DoWG
from .factored import Adafactor as Adafactor
from .hyperball import Hyperball as Hyperball
from .layerwise import (
    Fromage as Fromage,
    Lamb as Lamb,
    Lars as Lars,
    Novograd as Novograd,
)
from .lookahead import Lookahead as Lookahead
from .loss import Momo as Momo, MomoAdam as MomoAdam, PolyakSGD as PolyakSGD
from .low_rank import GaLore as GaLore
from .max_norm import AdaMax as AdaMax, AdaMaxW as AdaMaxW, AMSGrad as AMSGrad
from .mechanic import Mechanize as Mechanize
from .mixtures import AdEMAMix as AdEMAMix, SimplifiedAdEMAMix as SimplifiedAdEMAMix
from .momentum import NoisySGD as NoisySGD, SGD as SGD
from .nesterov import Adan as Adan, NAdam as NAdam, NAdamW as NAdamW
from .normalized import ADOPT as ADOPT
from .normuon import NorMuon as NorMuon
from .optimistic import (
    OptimisticAdam as OptimisticAdam,
    OptimisticGradientDescent as OptimisticGradientDescent,
)
from .orthogonal import Muon as Muon, Scion as Scion
from .preconditioned import Kron as Kron, SOAP as SOAP
from .private import DPSGD as DPSGD
from .qk_clip import QKClip as QKClip
from .rate_free import DAdaptAdamW as DAdaptAdamW, Prodigy as Prodigy
from .rounding import (
    KahanSummation as KahanSummation,
    StochasticRounding as StochasticRounding,
)
from .schedule_free import (
    ScheduleFree as ScheduleFree,
    ScheduleFreeAdamW as ScheduleFreeAdamW,
    ScheduleFreeSGD as ScheduleFreeSGD,
)
from .second_order import LBFGS as LBFGS, Sophia as Sophia
from .sign import Lion as Lion, Rprop as Rprop, SignSGD as SignSGD, Signum as Signum
from .variance import (
    ACProp as ACProp,
    AdaBelief as AdaBelief,
    RAdam as RAdam,
    Yogi as Yogi,
)
from .variance_reduced import Mars as Mars
from .whitening import Quad as Quad, Skew as Skew
