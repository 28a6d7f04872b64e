"""AdamW with a clip by the global norm, written for one pipeline, with Optax and JAX.

Two jitted functions per stage, with one all-gather of the squared norms in between.
Each stage counts its own steps, nothing is recorded, and nothing is checked. Only the
leaves of each stage are found by this library, before the first step.
"""

import functools
from typing import Any

import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class ByHand:
    """The update of a tree whose leaves are on the devices of their stages.

    **Arguments:**

    - `tx`: what follows the clip, with a `ScaleByAdamState` as its first state.
    - `clip_norm`: the largest global norm.
    - `params`: the parameters.
    - `donate`: whether to donate parameters and state, and to delete gradients.
    """

    def __init__(self, tx: Any, clip_norm: float, params: Any, *, donate: bool) -> None:
        self.structure, self.donate = jax.tree.structure(params), donate
        self.held = fo.partition_by_devices(params).params.held
        leaves = jax.tree.leaves(params)
        self.stages = [leaves[indices[0]].sharding for indices in self.held]
        devices = [list(stage.mesh.devices.flat) for stage in self.stages]
        mesh = Mesh(np.array(devices), ("stage", "copy"))
        self.by_stage = NamedSharding(mesh, PartitionSpec("stage"))
        everywhere = NamedSharding(mesh, PartitionSpec())
        self.gather = jax.jit(lambda norms: norms, out_shardings=everywhere)

        @jax.jit
        def squared_norm(grads):
            return jnp.sum(jnp.stack([jnp.sum(x * x) for x in grads])).reshape(1)

        @functools.partial(jax.jit, donate_argnums=(0, 1) if donate else ())
        def finish(params, state, grads, squared_norms):
            norm = jnp.sqrt(jnp.sum(squared_norms))
            scale = jnp.where(norm < clip_norm, 1.0, clip_norm / norm)
            updates, (adam, *_) = tx.update(
                [scale * x for x in grads], (state, *tx.init(params)[1:]), params
            )
            return optax.apply_updates(params, updates), adam

        self.squared_norm, self.finish = squared_norm, finish

    def init(self, params: Any) -> Any:
        """Both moments as trees, and the number of steps of each stage."""
        zeros = np.zeros((), np.int32)
        counts = [jax.device_put(zeros, stage) for stage in self.stages]
        moments = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
        return *moments, counts

    def step(self, grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        given = self.structure.flatten_up_to(grads)
        grads_by_stage = [[given[i] for i in indices] for indices in self.held]
        norms = self._gathered([*map(self.squared_norm, grads_by_stage)])
        *trees, counts = params, *state
        olds = [self.structure.flatten_up_to(tree) for tree in trees]
        news = [[None] * len(given) for _ in trees]
        new_counts = []
        for indices, own, count, norm in zip(
            self.held, grads_by_stage, counts, norms, strict=True
        ):
            own_params, mu, nu = ([old[i] for i in indices] for old in olds)
            adam = optax.ScaleByAdamState(count, mu, nu)
            own_params, adam = self.finish(own_params, adam, own, norm)
            for new, own_new in zip(news, (own_params, adam.mu, adam.nu), strict=True):
                for i, leaf in zip(indices, own_new, strict=True):
                    new[i] = leaf
            new_counts.append(adam.count)
        if self.donate:
            for leaf in given:
                leaf.delete()
        new_params, *moments = map(self.structure.unflatten, news)
        return new_params, (*moments, new_counts)

    def _gathered(self, norms: list[jax.Array]) -> list[jax.Array]:
        """For each stage the squared norms of all stages."""
        shape = (len(norms),)
        assemble = jax.make_array_from_single_device_arrays
        shards = [shard.data for norm in norms for shard in norm.addressable_shards]
        table = self.gather(assemble(shape, self.by_stage, shards))
        copies = [shard.data for shard in table.addressable_shards]
        size = len(copies) // len(norms)
        return [
            assemble(shape, stage, copies[k * size : (k + 1) * size])
            for k, stage in enumerate(self.stages)
        ]
