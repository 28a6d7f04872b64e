from .adaptive import Adam as Adam, AdamW as AdamW
from .momentum import SGD as SGD
from .schedule_free import ScheduleFree as ScheduleFree
from .sign import Lion as Lion
