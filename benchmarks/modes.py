"""The alternative ways to update parameters, each as a step that can be repeated."""

import functools
import importlib.util
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from trees import (
    CLIP_NORM,
    LEARNING_RATE,
    normal_like,
    partition,
    put,
    transformation,
    WEIGHT_DECAY,
)


class Mode(NamedTuple):
    """Updates its own parameters with its own gradients.

    **Attributes:**

    - `step`: runs a step, and returns arrays to wait for.
    - `params`: all parameters, on their current devices.
    """

    step: Callable[[], Any]
    params: Callable[[], Any]


def whole_tree_step() -> jax.stages.Wrapped:
    """A jitted Optax step from parameters, state and gradients to the first two.

    Donated buffers are paired with results of their shape in the order of both.
    """
    tx = transformation()

    def update(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(update, donate_argnums=(0, 1))


def whole(shapes: Any, options: dict[str, str | bool] | None = None) -> Mode:
    """A step of the whole tree, on one device."""
    device = jax.devices()[0]
    params = put(normal_like(shapes, seed=0), device)
    grads = put(normal_like(shapes, seed=1), device)
    held = [params, jax.jit(transformation().init)(params)]
    compiled = whole_tree_step().lower(*held, grads).compile(options)

    def step() -> Any:
        held[:] = compiled(*held, grads)
        return held

    return Mode(step, lambda: held[0])


def whole_in_little_memory(shapes: Any) -> Mode:
    scheduler: dict[str, str | bool] = {
        "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"
    }
    return whole(shapes, scheduler)


def staged(shapes: Any, devices: Sequence[jax.Device]) -> Mode:
    """Stages on these devices, in turn."""
    owners = partition(shapes)
    places = [devices[s % len(devices)] for s in range(owners.num_stages)]
    made = fo.stage_local(transformation(), shapes, owners, meshes=places, donate=True)
    params, grads = (
        tuple(map(put, owners.split(normal_like(shapes, seed)), places))
        for seed in (0, 1)
    )
    held = [params, made.init(params)]

    def step() -> Any:
        held[:] = made.step(grads, held[1], held[0])
        return held

    return Mode(step, lambda: owners.merge(held[0]))


def staged_on_all_devices(shapes: Any) -> Mode:
    return staged(shapes, jax.devices())


def staged_on_one_device(shapes: Any) -> Mode:
    return staged(shapes, jax.devices()[:1])


def sharded(shapes: Any) -> Mode:
    """A step of the whole tree, with the rows of each leaf on the devices of `staged`.

    This is what a program has that knows no stages.
    """
    count = math.gcd(len(jax.devices()), len(shapes))
    mesh = Mesh(np.array(jax.devices()[:count]), ("rows",))
    rows, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (["rows"], []))
    params, grads = (put(normal_like(shapes, seed), rows) for seed in (0, 1))
    init = transformation().init
    shardings = jax.tree.map(
        lambda x: rows if x.ndim else whole, jax.eval_shape(init, shapes)
    )
    held = [params, jax.jit(init, out_shardings=shardings)(params)]
    compiled = whole_tree_step().lower(*held, grads).compile()

    def step() -> Any:
        held[:] = compiled(*held, grads)
        return held

    return Mode(step, lambda: held[0])


def jit_alone(shapes: Any, devices: Sequence[jax.Device]) -> Mode:
    """One call per stage of a jitted function with as many (donated) arrays."""
    grads = [put(normal_like(part, seed=1), d) for part, d in _zip(shapes, devices)]
    held = [
        put(normal_like([part] * 3, seed=0), d) for part, d in _zip(shapes, devices)
    ]

    @functools.partial(jax.jit, donate_argnums=0)
    def add(trees: Any, grads: Any) -> Any:
        return [jax.tree.map(jnp.add, tree, grads) for tree in trees]

    def step() -> Any:
        held[:] = map(add, held, grads)
        return held

    return Mode(step, lambda: held)


def by_hand(
    shapes: Any, devices: Sequence[jax.Device], *, of_pieces: bool = False
) -> Mode:
    """Two programs per stage and one all-gather, with nothing else on the host.

    For this transformation alone, with no library but Optax: the squared norms of the
    leaves on each stage, an array of them that one program copies to all devices, and
    the update with a given norm. JAX flattens the trees of each stage and builds the
    new ones, and nothing is checked.

    **Arguments:**

    - `of_pieces`: whether the trees of a stage are those of `staged`, with None in
        place of the leaves of all other stages, instead of its own part alone.
    """
    split = partition(shapes).split if of_pieces else dict.values
    pieces, grads = (
        [*map(put, split(normal_like(shapes, seed)), devices)] for seed in (0, 1)
    )
    adamw = optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    held = [(piece, jax.jit(adamw.init)(piece)) for piece in pieces]
    rows = NamedSharding(Mesh(np.array(devices), ("stage",)), PartitionSpec("stage"))
    everywhere = NamedSharding(rows.mesh, PartitionSpec())

    @jax.jit
    def squares(grads: list[Any]) -> Any:
        return jnp.stack([jnp.sum(g * g) for g in grads])

    @functools.partial(jax.jit, donate_argnums=0)
    def update(held: list[Any], grads: list[Any], squares: Any) -> list[Any]:
        structure = jax.tree.structure((grads, jax.eval_shape(adamw.init, grads)))
        params, state = jax.tree.unflatten(structure, held)
        norm = jnp.sqrt(jnp.sum(squares))
        clipped = [jnp.where(norm < CLIP_NORM, g, g / norm * CLIP_NORM) for g in grads]
        updates, state = adamw.update(clipped, state, params)
        return jax.tree.leaves((optax.apply_updates(params, updates), state))

    gather = jax.jit(lambda x: x, out_shardings=everywhere)
    length = sum(len(jax.tree.leaves(piece)) for piece in pieces)

    def step() -> Any:
        given = list(map(jax.tree.leaves, grads))
        own = list(map(squares, given))
        whole = jax.make_array_from_single_device_arrays((length,), rows, own)
        copies = {c.device: c.data for c in gather(whole).addressable_shards}
        for stage, device in enumerate(devices):
            leaves, structure = jax.tree.flatten(held[stage])
            leaves = update(leaves, given[stage], copies[device])
            held[stage] = jax.tree.unflatten(structure, leaves)
        return held

    def params() -> Any:
        leaves = jax.tree.leaves([own for own, _ in held])
        return jax.tree.unflatten(jax.tree.structure(shapes), leaves)

    return Mode(step, params)


def _zip(shapes: Any, devices: Sequence[jax.Device]) -> Any:
    return zip(shapes.values(), devices, strict=True)


def eformer(shapes: Any) -> Mode:
    """The peer, on the same devices."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from eformer import optimizers as peer  # pyright: ignore
    tx, _ = peer.OptimizerFactory.create(
        "adamw",
        peer.SchedulerConfig(learning_rate=LEARNING_RATE),
        weight_decay=WEIGHT_DECAY,
        clip_grad=CLIP_NORM,
    )
    devices = jax.devices()
    places = {name: devices[s % len(devices)] for s, name in enumerate(shapes)}

    def placed(seed: int) -> Any:
        return {
            name: put(part, places[name])
            for name, part in normal_like(shapes, seed).items()
        }

    params, grads = placed(0), placed(1)
    held = [params, tx.init(params)]

    def step() -> Any:
        held[:] = tx.apply_gradients_stage_local(
            params=held[0], grads=grads, opt_state=held[1]
        )
        return held

    return Mode(step, lambda: held[0])


def torch(shapes: Any) -> Mode:
    """PyTorch's fused AdamW, on one device."""
    import torch  # pyright: ignore

    device = "cuda" if torch.cuda.is_available() else "cpu"

    def tensors(seed: int) -> list[Any]:
        leaves = jax.tree.leaves(normal_like(shapes, seed))
        return [torch.from_numpy(leaf).to(device) for leaf in leaves]

    params = [torch.nn.Parameter(tensor) for tensor in tensors(0)]
    for param, grad in zip(params, tensors(1), strict=True):
        param.grad = grad
    optimizer = torch.optim.AdamW(
        params, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True
    )

    # This clips gradients in place, at the same cost where they are clipped already.
    def step() -> None:
        torch.nn.utils.clip_grad_norm_(params, CLIP_NORM)
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return Mode(step, lambda: params)


WHOLE = "whole tree"
STAGED = "staged, all devices"
SHARDED = "one program, sharded leaves"
PEER = "eformer 0.0.101"


def modes() -> dict[str, Callable[[Any], Mode]]:
    """The alternatives that can run on this machine."""
    found: dict[str, Callable[[Any], Mode]] = {
        WHOLE: whole,
        STAGED: staged_on_all_devices,
        "staged, one device": staged_on_one_device,
        SHARDED: sharded,
    }
    if jax.default_backend() == "cpu":
        found[f"{WHOLE}, memory scheduler"] = whole_in_little_memory
    if importlib.util.find_spec("eformer") is not None:
        found[PEER] = eformer
    if importlib.util.find_spec("torch") is not None:
        found["torch.optim.AdamW"] = torch
    return found
