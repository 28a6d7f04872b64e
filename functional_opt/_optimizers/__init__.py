from .adaptive import Adam as Adam, AdamW as AdamW, RMSProp as RMSProp
from .factored import Adafactor as Adafactor
from .momentum import SGD as SGD
from .orthogonal import Muon as Muon, Scion as Scion
from .preconditioned import Kron as Kron, SOAP as SOAP
from .schedule_free import ScheduleFree as ScheduleFree
from .sign import Lion as Lion
from .variance_reduced import Mars as Mars
from .whitening import Quad as Quad, Skew as Skew
