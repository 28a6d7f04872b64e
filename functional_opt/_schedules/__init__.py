from .constant import Constant as Constant
from .cosine import Cosine as Cosine
from .linear import Linear as Linear
