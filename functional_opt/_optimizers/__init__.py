from .adaptive import Adam as Adam, AdamW as AdamW, RMSProp as RMSProp
from .factored import Adafactor as Adafactor
from .momentum import SGD as SGD
from .orthogonal import Muon as Muon
from .sign import Lion as Lion
