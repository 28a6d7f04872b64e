import optax

from .._base import WeightDecay
from .._types import LearningRate
from .._where import Mask


def descend(
    scaled: optax.GradientTransformation,
    schedule: LearningRate,
    weight_decay: WeightDecay,
    mask: Mask | None,
) -> optax.GradientTransformationExtraArgs:
    """Steps of the learning rate along an update, with decoupled weight decay."""
    return optax.chain(
        scaled,
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(schedule),
    )
