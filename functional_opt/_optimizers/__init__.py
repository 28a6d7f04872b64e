from .adaptive import Adam as Adam, AdamW as AdamW
from .momentum import SGD as SGD
from .sign import Lion as Lion
