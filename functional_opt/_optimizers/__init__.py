from .adaptive import Adam as Adam, AdamW as AdamW, RMSProp as RMSProp
from .factored import Adafactor as Adafactor
from .max_norm import AdaMax as AdaMax, AdaMaxW as AdaMaxW, AMSGrad as AMSGrad
from .momentum import SGD as SGD
from .nesterov import Adan as Adan, NAdam as NAdam, NAdamW as NAdamW
from .orthogonal import Muon as Muon, Scion as Scion
from .preconditioned import Kron as Kron, SOAP as SOAP
from .schedule_free import ScheduleFree as ScheduleFree
from .sign import Lion as Lion
from .variance import (
    ACProp as ACProp,
    AdaBelief as AdaBelief,
    RAdam as RAdam,
    Yogi as Yogi,
)
from .variance_reduced import Mars as Mars
from .whitening import Quad as Quad, Skew as Skew
