"""The Optax transformation of whole trees, each leaf on the devices of its stage."""

from typing import Any

import optax
from jaxtyping import PyTree

from .trees import Pieces
from .whole_trees import WholeTrees


class WholeTransformation(optax.GradientTransformationExtraArgs):
    """An Optax transformation of whole trees: the `whole` of a `StageLocal`.

    Many pipeline runtimes hold one tree, with each leaf on the devices of its stage.
    `init` and `update` have the signatures of Optax for such trees. The program of each
    stage runs on the devices of its leaves, and only messages move between devices. A
    leaf that several stages hold, such as a tied parameter or a counter of the state,
    is one array on the devices of all of them, so the state has the structure of Optax.
    The gradient of a tied parameter is the sum over its uses. It is on the devices of
    all owners, or on those of one owner and then broadcast.

    Call these functions outside of `jax.jit`, which refuses arrays on different
    devices. If all stages are on one device, they also work inside `jit`, where they
    call `tx` itself.

    !!! Example

        >>> import functional_opt as fo, jax.numpy as jnp, optax
        >>> params = {"embed": jnp.ones((8, 2)), "head": jnp.ones((2, 8))}
        >>> partition = fo.partition(params, {"embed": 0, "head": 1})
        >>> tx = fo.stage_local(optax.adam(1e-3), params, partition).whole
        >>> state = tx.init(params)
        >>> updates, state = tx.update(params, state, params)
        >>> params = optax.apply_updates(params, updates)
        >>> params, state = tx.step(params, state, params)
        >>> int(optax.tree.get(state, "count"))
        2
    """

    _trees: WholeTrees

    @classmethod
    def of(cls, trees: WholeTrees) -> "WholeTransformation":
        self = cls(trees.init, trees.update)
        self._trees = trees
        return self

    def step(
        self, grads: PyTree, state: PyTree, params: PyTree, **extra_args: Any
    ) -> tuple[PyTree, PyTree]:
        """The new parameters and state: `tx.update` and `optax.apply_updates`.

        `donate` of `stage_local` donates the buffers of `params` and `state`.

        **Arguments:**

        - `grads`: the gradients. None in place of a gradient counts as zeros.
        - `state`: the state that `init` or the last step returned.
        - `params`: the parameters. The new parameters have the same shardings.
        - `extra_args`: the extra arguments, as in `StageLocal.step`.
        """
        return self._trees.step(grads, state, params, **extra_args)

    def join(self, params_by_stage: Pieces, states: Pieces) -> tuple[PyTree, PyTree]:
        """Joins the pieces of a `StageLocal` into whole trees, without copying."""
        return self._trees.join(params_by_stage, states)

    def split(
        self, params: PyTree, state: PyTree
    ) -> tuple[tuple[PyTree, ...], tuple[PyTree, ...]]:
        """Splits whole trees into pieces, for `Checkpoints`, without copying."""
        return self._trees.split(params, state)
