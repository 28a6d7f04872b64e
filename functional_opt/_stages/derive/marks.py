"""Which dimensions of gradients, state and parameters are dimensions of a parameter.

All dimensions of a parameter are. For the state, `tx.init` is evaluated abstractly on
larger parameters: a dimension that grows is a dimension of a parameter, and the length
of a history of losses does not grow. With `w` of shape `(4,)`, then `(9,)`:

    mu['w']       (4,) -> (9,)       marked
    history       (10,) -> (10,)     not marked
"""

from collections.abc import Sequence

import jax
import optax
from jaxtyping import PyTree

from ..._slicing.dimensions import Marks


def marks_of_params(params: PyTree) -> list[Marks]:
    return [(True,) * len(leaf.shape) for leaf in jax.tree.leaves(params)]


def marks_of_grads(grads: PyTree, params: PyTree) -> list[Marks]:
    """Gradients may have leading dimensions of their own, such as one for examples."""
    return [
        _trailing(grad.shape, param.shape)
        for grad, param in zip(
            jax.tree.leaves(grads), jax.tree.leaves(params), strict=True
        )
    ]


def _trailing(shape: Sequence[int], of_param: Sequence[int]) -> Marks:
    leading = len(shape) - len(of_param)
    if leading < 0 or tuple(shape[leading:]) != tuple(of_param):
        return (True,) * len(shape)
    return (False,) * leading + (True,) * len(of_param)


def marks_of_extra_args(extra_args: PyTree, params: PyTree) -> list[Marks]:
    """An extra argument of the shape of a parameter has that parameter's dimensions."""
    shapes = {leaf.shape for leaf in jax.tree.leaves(params)}
    leaves = jax.tree.leaves(extra_args)
    return [(leaf.shape in shapes,) * len(leaf.shape) for leaf in leaves]


def marks_of_state(
    tx: optax.GradientTransformation, params: PyTree, state: PyTree
) -> list[Marks]:
    """The marks of the state; all are set if `tx.init` fails on larger parameters."""
    larger = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            tuple(2 * size + 1 for size in leaf.shape), leaf.dtype
        ),
        params,
    )
    leaves = jax.tree.leaves(state)
    try:
        grown = jax.tree.leaves(jax.eval_shape(tx.init, larger))
    # The `init` of a third party may raise anything for shapes that it does not expect.
    except Exception:
        grown = []
    if len(grown) != len(leaves):
        return [(True,) * len(leaf.shape) for leaf in leaves]
    return [
        _grown(leaf.shape, other.shape)
        for leaf, other in zip(leaves, grown, strict=True)
    ]


def _grown(shape: Sequence[int], larger: Sequence[int]) -> Marks:
    if len(shape) != len(larger):
        return (True,) * len(shape)
    return tuple(one != other for one, other in zip(shape, larger, strict=True))
