"""Random small programs over inputs of several stages, for the fuzzing of the slicer.

The numbers of most programs are integers below `MODULUS`, whatever their dtype: all
arithmetic on them is exact, in any order and however it is fused, so that results are
compared bit for bit. Those of `smooth_programs` are positive, and each operation damps
relative errors, so that results are compared closely.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun, Literal


StageSet = frozenset[int]

WIDTH = 36
MODULUS = 31
MOST_INPUTS = 24
TABLE = np.arange(WIDTH, dtype=np.float32) % 5


@dataclass(frozen=True)
class Program:
    """A function of inputs that live on stages, to results that stages want.

    **Attributes:**

    - `num_stages`: how many stages there are.
    - `inputs`: the kind and the place of each input.
    - `steps`: the name of an operation and its operands. Each appends its results to
        the values so far; an operand counts these from the latest.
    - `results`: which values are wanted, counted likewise, and where.
    """

    num_stages: int
    inputs: tuple[tuple[str, StageSet], ...]
    steps: tuple[tuple[str, tuple[int, int, int]], ...]
    results: tuple[tuple[int, StageSet], ...]

    def __call__(self, *args: Any) -> list[Any]:
        # Operands of different ranks are part of what is drawn.
        with jax.numpy_rank_promotion("allow"):
            return self._results(args)

    def _results(self, args: Sequence[Any]) -> list[Any]:
        values = list(args)
        for name, operands in self.steps:
            if name in OF_ALL:
                made = OF_ALL[name](values)
            else:
                made = OPERATIONS[name](*(_pick(values, i) for i in operands))
            values += made if isinstance(made, tuple | list) else [made]
        return [_pick(values, i) for i, _ in self.results]

    def arguments(self, seed: int) -> list[Any]:
        generator = np.random.default_rng(seed)
        return [KINDS[kind](generator) for kind, _ in self.inputs]

    @property
    def input_stages(self) -> list[StageSet]:
        return [place for _, place in self.inputs]

    @property
    def marks(self) -> list[tuple[bool, ...]]:
        """Large inputs alone have dimensions of parameters: all others may travel."""
        ranks = [jnp.ndim(arg) for arg in self.arguments(0)]
        kinds = [kind for kind, _ in self.inputs]
        return [
            (kind in LARGE_KINDS,) * rank
            for kind, rank in zip(kinds, ranks, strict=True)
        ]

    @property
    def result_stages(self) -> list[StageSet]:
        return [place for _, place in self.results]


def _pick(values: Sequence[Any], index: int) -> Any:
    return values[-1 - index % len(values)]


def _array(dtype: str, *shape: int) -> Callable[[np.random.Generator], Any]:
    """Integers of a dtype, or of the widest like it if that is not enabled."""

    def make(generator: np.random.Generator) -> Any:
        numbers = generator.integers(-9, 10, shape)
        return jnp.asarray(numbers, jax.dtypes.canonicalize_dtype(dtype))

    return make


def _positive(*shape: int) -> Callable[[np.random.Generator], Any]:
    return lambda generator: jnp.asarray(generator.uniform(0.5, 2.0, shape), "float32")


KINDS: dict[str, Callable[[np.random.Generator], Any]] = {
    "scalar": _array("float32"),
    "vector": _array("float32", WIDTH),
    "matrix": _array("float32", WIDTH, WIDTH),
    "half": _array("bfloat16", WIDTH, 2 * WIDTH),
    "float16": _array("float16", 2 * WIDTH, WIDTH),
    "complex": _array("complex64", WIDTH, WIDTH),
    "wide": _array("float64", WIDTH, WIDTH),
    "wide complex": _array("complex128"),
    "single": _array("float32", 1),
    "single entry": _array("float32", 1, 1),
    "nothing": _array("float32", 0),
    "no rows": _array("float32", 0, WIDTH),
    "count": _array("int32"),
    "flag": lambda generator: jnp.asarray(generator.integers(2), bool),
    "flags": lambda generator: jnp.asarray(generator.integers(0, 2, WIDTH), bool),
    "ints": _array("int32", WIDTH),
    "key": lambda generator: jax.random.key(int(generator.integers(99))),
    "old key": lambda generator: jax.random.PRNGKey(int(generator.integers(99))),
    "positive scalar": _positive(),
    "positive vector": _positive(WIDTH),
    "positive matrix": _positive(WIDTH, WIDTH),
}
SMOOTH_KINDS = ("positive scalar", "positive vector", "positive matrix", "flag")
# Those of parameters: a parameter may have one entry, or none.
LARGE_KINDS = (
    *("matrix", "half", "float16", "complex", "wide"),
    *("single entry", "no rows", "positive matrix"),
)
KEY_KINDS = ("key", "old key")
EXACT_KINDS = tuple(kind for kind in KINDS if not kind.startswith("positive"))


def is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def number(x: Any) -> Any:
    """Anything as float32 numbers below the modulus."""
    x = jax.random.key_data(x) if is_key(x) else x
    if x.dtype == jnp.uint32:
        x = jax.lax.rem(x, jnp.uint32(MODULUS))
    if jnp.iscomplexobj(x):
        x = tame(jnp.real(x) + 2 * jnp.imag(x))
    return x.astype(jnp.float32)


def entries(x: Any) -> Any:
    """What can be asked for its largest entry: a zero in place of no entries."""
    return x if x.size else jnp.sum(x, keepdims=True)


def largest(x: Any) -> Any:
    return jnp.max(entries(x))


def tame(x: Any) -> Any:
    """The remainder, which is exact; zeros are positive, whatever their history."""
    x = jax.lax.rem(x, jnp.asarray(MODULUS, x.dtype))
    return jnp.where(x == 0, jnp.abs(x), x)  # Not `x + 0`, which XLA takes for `x`.


def fit(x: Any, like: Any) -> Any:
    """Makes a number that can meet `like`, and takes its shape."""
    x = number(x)
    fits = x.shape == like.shape or x.shape == () or x.shape == like.shape[1:]
    return x if fits else largest(x)


def numeric(function: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a function numbers that fit the first one, and tames its results."""

    @functools.wraps(function)
    def wrapped(x: Any, *others: Any) -> Any:
        x = number(x)
        return jax.tree.map(tame, function(x, *(fit(y, x) for y in others)))

    return wrapped


def is_positive(x: Any) -> Any:
    return jnp.sum(number(x)) > 0


def join(x: Any, y: Any, _: Any) -> Any:
    parts = [jnp.ravel(number(x)), jnp.ravel(number(y))]
    return jnp.concatenate(parts if parts[0].size + parts[1].size < 4000 else parts[:1])


def product(x: Any, y: Any, _: Any) -> Any:
    x, y = number(x), number(y)
    if x.ndim == 2 and y.ndim > 0 and x.shape[1] == y.shape[0]:
        return tame(jnp.dot(x, y))
    if x.shape == y.shape and x.ndim == 1:
        return tame(jnp.dot(x, y))
    return tame(jnp.sum(x * fit(y, x)))


def pair(x: Any, y: Any) -> Any:
    return tame(x + 1), tame(y * 2)


def mixing(x: Any, y: Any) -> Any:
    return tame(x * largest(y)), tame(y + jnp.sum(x))


def swapped(x: Any, y: Any) -> Any:
    return y, x


jitted_pair = jax.jit(pair)
jitted_mixing = jax.jit(lambda x, y: mixing(*jitted_pair(x, y)))
checkpointed = jax.checkpoint(mixing)
custom_jvp = jax.custom_jvp(mixing)
custom_jvp.defjvp(lambda primals, tangents: (mixing(*primals), mixing(*tangents)))
custom_vjp = jax.custom_vjp(pair)
custom_vjp.defvjp(lambda x, y: (pair(x, y), None), lambda _, cotangents: cotangents)


def call(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, y, _: function(number(x), number(y))


def traced_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """Loops in a jit, so that they are compiled once for all programs."""
    jitted = jax.jit(lambda x, y: function(x, y))
    return lambda x, y, _: jitted(number(x), number(y))


def differentiated(x: Any, y: Any, _: Any) -> Any:
    def loss(x: Any, y: Any) -> Any:
        return jnp.sum(x * x) + jnp.sum(y) * 3

    return jax.tree.map(tame, jax.grad(loss, (0, 1))(number(x), number(y)))


def same(x: Any, y: Any) -> Any:
    return x, y


def one_branch(x: Any, y: Any) -> Any:
    return jax.lax.cond(largest(x) > 2, pair, same, x, y)


def cond(
    yes: Callable[..., Any], no: Callable[..., Any], known: bool | None = None
) -> Callable[..., Any]:
    def apply(x: Any, y: Any, z: Any) -> Any:
        flag = is_positive(z) if known is None else jnp.array(known)
        return jax.lax.cond(flag, yes, no, number(x), number(y))

    return apply


def switch(x: Any, y: Any, z: Any) -> Any:
    index = largest(number(z)).astype(jnp.int32)
    return jax.lax.switch(index, [pair, same, mixing], number(x), number(y))


def cond_of_one(x: Any, y: Any, z: Any) -> Any:
    return jax.lax.cond(is_positive(z), lambda x: tame(x + 1), lambda x: x, number(x))


def cond_to_constants(x: Any, y: Any, z: Any) -> Any:
    x = number(x)
    return jax.lax.cond(
        is_positive(z), lambda x: (x, 1.0), lambda x: (jnp.zeros_like(x), 2.0), x
    )


def jitted_cond(x: Any, y: Any, z: Any) -> Any:
    return _jitted_cond(number(x), number(y), number(z))


_jitted_cond = jax.jit(cond(jitted_mixing, same))


def loop(x: Any, y: Any) -> Any:
    return jax.lax.fori_loop(0, 3, lambda i, c: pair(c[0] + i, c[1]), (x, y))


def loop_mixing(x: Any, y: Any) -> Any:
    return jax.lax.fori_loop(0, 2, lambda _, c: mixing(*c), (x, y))


def scan_rows(x: Any, y: Any) -> Any:
    def step(carry: Any, row: Any) -> Any:
        return tame(carry + jnp.sum(row)), tame(row + carry)

    return jax.lax.scan(step, largest(y), jnp.atleast_1d(x)[:4])


def scan_constant(x: Any, y: Any) -> Any:
    added = fit(y, x)
    return jax.lax.scan(lambda carry, _: (tame(carry + added), None), x, length=2)[0]


def narrow_loop(dtype: str) -> Callable[..., Any]:
    """A loop whose carry is rounded at every step, by one operation."""

    def loop(x: Any, y: Any) -> Any:
        def body(_: Any, carry: Any) -> Any:
            return carry[0] * 0.7, carry[1] + largest(carry[0])

        carry = x.astype(dtype), y.astype(dtype)
        results = jax.lax.fori_loop(0, 3, body, carry)
        return [tame(jnp.floor(number(result))) for result in results]

    return loop


def complex_of(x: Any, y: Any, _: Any) -> Any:
    x = number(x)
    return jax.lax.complex(x, jnp.broadcast_to(fit(y, x), x.shape))


def rotated(x: Any, y: Any, _: Any) -> Any:
    """The number times i, plus a conjugate."""
    x = x if jnp.iscomplexobj(x) else number(x).astype(jnp.complex64)
    turned = jax.lax.complex(-jnp.imag(x), jnp.real(x))
    added = turned + jnp.conj(largest(number(y)).astype(turned.dtype))
    return jax.lax.complex(tame(jnp.real(added)), tame(jnp.imag(added)))


def widened(x: Any, *_: Any) -> Any:
    return number(x).astype(jax.dtypes.canonicalize_dtype("float64"))


def sum_of_all(values: Sequence[Any]) -> Any:
    """The sum of everything so far, as of a global norm."""
    sums = [tame(jnp.sum(number(value))) for value in values]
    return tame(functools.reduce(jnp.add, sums))


def repeat(x: Any, y: Any) -> Any:
    """As often as a number of `y` says."""
    times = jnp.abs(largest(y)) % 4

    def step(carry: Any) -> Any:
        return carry[0] + 1, tame(carry[1] + 3)

    return jax.lax.while_loop(lambda c: c[0] < times, step, (times * 0, x))[1]


def key_of(x: Any) -> Any:
    """A key as it is, and of anything else a new one."""
    if x.shape == (2,) and x.dtype == jnp.uint32:
        return x
    seed = largest(jnp.abs(number(x))).astype(jnp.int32)
    return x if is_key(x) and x.ndim == 0 else jax.random.key(seed)


def split(x: Any, _: Any, __: Any) -> Any:
    keys = jax.random.split(key_of(x))
    return keys[0], keys[1]


def noise(x: Any, y: Any, _: Any) -> Any:
    y = number(y)
    return tame(y + number(jax.random.bits(key_of(x), y.shape)))


def fold(x: Any, y: Any, _: Any) -> Any:
    count = largest(jnp.abs(number(y))).astype(jnp.int32)
    return jax.random.fold_in(key_of(x), count)


def corrected(x: Any, y: Any, z: Any) -> Any:
    """Divisions by one shared number, a power of two for the sake of exactness."""
    scale = jnp.where(largest(number(z)) > 0, 2.0, 1.0)
    halves = number(x) / scale, number(y) / scale
    return jax.tree.map(lambda half: jnp.floor(half) + 0.0, halves)


def scaled_sums(x: Any, y: Any, _: Any) -> Any:
    """A sum of what a sum scaled, which takes two rounds."""
    x, y = number(x), number(y)
    first = tame(jnp.sum(x) + jnp.sum(y))
    return tame(jnp.sum(tame(x * first)) + jnp.sum(tame(y * first)))


def reciprocals(x: Any, y: Any, z: Any) -> Any:
    """Divides numbers by shared ones."""
    # Shapes such as (1,) are `test_a_number_divided_by_a_single_entry`.
    scale = jnp.where(jnp.squeeze(number(x)) > 0, 2.0, 1.0)
    weights = largest(1.0 / scale), largest(4.0 / scale)
    return tame(number(y) * weights[0] * 2), tame(number(z) * weights[1])


def whole(x: Any) -> Any:
    return number(x).astype(jnp.int32)


OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": numeric(lambda x, y, _: x + y),
    "add sums": numeric(lambda x, y, z: x + tame(jnp.sum(y) + jnp.sum(z))),
    "subtract": numeric(lambda x, y, _: x - y),
    "multiply": numeric(lambda x, y, _: x * y),
    "multiply and add": numeric(lambda x, y, z: x * y + z),
    "square": numeric(lambda x, *_: x * x),
    "maximum": numeric(lambda x, y, _: jnp.maximum(x, y)),
    "clip": numeric(lambda x, y, z: jnp.clip(x, -jnp.abs(y), jnp.abs(z))),
    "table": numeric(lambda x, *_: x + (TABLE if x.shape[-1:] == (WIDTH,) else 2)),
    "sum": numeric(lambda x, *_: jnp.sum(x)),
    "sums of all": numeric(lambda x, y, z: jnp.sum(x) + jnp.sum(y) + jnp.sum(z)),
    "sum of rows": numeric(lambda x, *_: jnp.sum(x, axis=-1) if x.ndim else x),
    "largest": numeric(lambda x, *_: largest(x)),
    "cumulative": numeric(lambda x, *_: jnp.cumsum(jnp.ravel(x))),
    "sort": numeric(lambda x, *_: jnp.sort(jnp.atleast_1d(x))),
    "first": numeric(lambda x, *_: jnp.ravel(entries(x))[:3]),
    "transpose": numeric(lambda x, *_: x.T),
    "fill": numeric(lambda x, *_: jnp.full((WIDTH, WIDTH), largest(x))),
    "broadcast": numeric(
        lambda x, *_: jnp.broadcast_to(entries(x).ravel()[0], (WIDTH,))
    ),
    "pad": numeric(lambda x, *_: jnp.pad(jnp.ravel(x)[:5], 2)),
    "stack": numeric(lambda x, y, z: jnp.stack([largest(x), largest(y), -largest(-z)])),
    "choose": numeric(lambda x, y, z: jnp.where(z > 0, x, y)),
    "zeros": numeric(lambda x, *_: jnp.zeros_like(x)),
    "less": lambda x, y, _: number(x) < fit(y, number(x)),
    "any": lambda x, y, _: jnp.any(number(x) > 3) & jnp.all(number(y) < 30),
    "integers": lambda x, *_: whole(x),
    "count": lambda x, *_: jnp.argmax(jnp.ravel(entries(number(x)))),
    "integer arithmetic": lambda x, y, _: (whole(x) * 3 + largest(whole(y))) % 7,
    "complex": complex_of,
    "rotate": rotated,
    "widen": widened,
    "narrow": lambda x, *_: number(x).astype(jnp.bfloat16),
    "index": lambda x, y, _: jnp.ravel(entries(number(x)))[largest(whole(y)) % 3],
    "dynamic update": lambda x, y, _: (
        jnp.ravel(entries(number(x))).at[0].set(largest(number(y)))
    ),
    "join": join,
    "dot": product,
    "corrected": corrected,
    "sum of what a sum scaled": scaled_sums,
    "reciprocals": reciprocals,
    "grad": differentiated,
    "jit": call(jitted_pair),
    "nested jit": call(jitted_mixing),
    "checkpoint": call(checkpointed),
    "custom_jvp": call(custom_jvp),
    "custom_vjp": call(custom_vjp),
    "cond": cond(pair, same),
    "cond that mixes": cond(mixing, same),
    "cond in cond": cond(one_branch, pair),
    "known cond": cond(mixing, same, known=True),
    "cond of one": cond_of_one,
    "cond to constants": cond_to_constants,
    "cond in jit": jitted_cond,
    "switch": switch,
    "loop": traced_once(loop),
    "loop that mixes": traced_once(loop_mixing),
    "bfloat16 loop": traced_once(narrow_loop("bfloat16")),
    "float16 loop": traced_once(narrow_loop("float16")),
    "scan over rows": traced_once(scan_rows),
    "scan of a constant": traced_once(scan_constant),
    "while": traced_once(repeat),
    "split key": split,
    "noise": noise,
    "fold in": fold,
}
OF_ALL: dict[str, Callable[[Sequence[Any]], Any]] = {"sum of all": sum_of_all}
MAKES_LARGE = frozenset({"fill"})
MAKES_KEYS = frozenset({"split key", "noise", "fold in"})


def smooth(function: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a function numbers that fit the first one."""

    @functools.wraps(function)
    def wrapped(x: Any, *others: Any) -> Any:
        x = positive(x)
        return function(x, *(y if y.dtype == jnp.bool_ else fit(y, x) for y in others))

    return wrapped


def positive(x: Any) -> Any:
    return number(x) + (x.dtype == jnp.bool_)


def scaled(x: Any, y: Any) -> Any:
    return x / jnp.sqrt(jnp.mean(x * x)) * jnp.mean(y), y * 0.9 + jnp.mean(x) * 0.1


def smooth_scan(x: Any, y: Any, _: Any) -> Any:
    return jax.lax.fori_loop(0, 3, lambda _, c: 0.5 * c + 0.5 * jnp.mean(y), x)


SMOOTH = {
    "average": smooth(lambda x, y, _: 0.7 * x + 0.3 * y),
    "geometric": smooth(lambda x, y, _: jnp.sqrt(x * y)),
    "norm": smooth(lambda x, *_: jnp.sqrt(jnp.mean(x * x))),
    "global norm": smooth(
        lambda x, y, z: jnp.sqrt(jnp.sum(x**2) + jnp.sum(y**2) + jnp.sum(z**2)) / 50
    ),
    "share": smooth(lambda x, y, _: x / (x + y) + 0.5),
    "by largest": smooth(lambda x, y, _: x / largest(y)),
    "saturate": smooth(lambda x, *_: jnp.tanh(x) + 0.5),
    "decay": smooth(lambda x, y, _: jnp.exp(-x) + 0.5 * y),
    "smooth dot": smooth(lambda x, *_: jnp.dot(x, x.T) / WIDTH),
    "smooth fill": smooth(lambda x, *_: jnp.full((WIDTH, WIDTH), largest(x))),
    "smooth custom_jvp": smooth(lambda x, *_: jax.nn.silu(x) + 0.5),
    "smooth jit": smooth(lambda x, y, _: jax.jit(scaled)(x, y)),
    "smooth cond": smooth(
        lambda x, y, z: jax.lax.cond(jnp.all(z > 0), scaled, same, x, positive(y))
    ),
    "smooth scan": smooth(smooth_scan),
}
OPERATIONS |= SMOOTH
EXACT = (*(name for name in OPERATIONS if name not in SMOOTH), *OF_ALL)
SMALL = tuple(name for name in EXACT if name not in MAKES_LARGE | MAKES_KEYS)


@st.composite
def programs(
    draw: Any,
    names: Sequence[str] = EXACT,
    kinds: Sequence[str] = (*EXACT_KINDS, *["matrix", "half"] * 2),
) -> Program:
    num_stages = draw(st.integers(2, 4))
    stages = range(num_stages)
    one = st.sampled_from([frozenset({stage}) for stage in stages])
    everywhere = st.just(frozenset(stages))
    some = st.frozensets(st.sampled_from(stages), min_size=1)
    place = st.one_of(one, one, one, everywhere, some)
    operand = st.one_of(st.integers(0, 6), st.integers(0, MOST_INPUTS))
    step = st.tuples(st.sampled_from(names), st.tuples(operand, operand, operand))
    given = st.tuples(st.sampled_from(kinds), place)
    few = st.lists(given, min_size=1, max_size=4)
    many = st.lists(given, min_size=17, max_size=MOST_INPUTS)
    return Program(
        num_stages,
        tuple(draw(st.one_of([*[few] * 5, many]))),
        tuple(draw(st.lists(step, min_size=1, max_size=8))),
        tuple(draw(st.lists(st.tuples(operand, place), min_size=1, max_size=3))),
    )


def small_programs() -> st.SearchStrategy[Program]:
    """Programs without keys, which never travel."""
    kinds = [kind for kind in EXACT_KINDS if kind not in (*LARGE_KINDS, *KEY_KINDS)]
    return programs(SMALL, kinds)


def smooth_programs() -> st.SearchStrategy[Program]:
    return programs(tuple(SMOOTH), (*SMOOTH_KINDS, "positive matrix"))


def dtype_of(literal: Any) -> Any:
    return literal.aval.dtype


def evaluate(closed: ClosedJaxpr, args: Sequence[Any]) -> list[Any]:
    """Runs one equation after the other, which compiles each operation only once."""
    jaxpr = closed.jaxpr
    value = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    value.update(zip(jaxpr.invars, args, strict=True))

    def read(atom: Any) -> Any:
        if isinstance(atom, Literal):
            return jnp.asarray(atom.val, dtype_of(atom))
        return value[atom]

    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "cond":
            index, *operands = map(read, eqn.invars)
            results = evaluate(eqn.params["branches"][int(index)], operands)
        elif eqn.primitive.name == "jit":
            results = evaluate(eqn.params["jaxpr"], list(map(read, eqn.invars)))
        else:
            variables = [v for v in eqn.invars if not isinstance(v, Literal)]
            operands = list(dict.fromkeys(variables))
            alone = jaxpr.replace(
                constvars=[],
                invars=operands,
                outvars=list(eqn.outvars),
                eqns=[eqn],
                debug_info=jaxpr.debug_info.with_unknown_names(),
            )
            results = jaxpr_as_fun(ClosedJaxpr(alone, []))(*map(read, operands))
        value.update(zip(eqn.outvars, results, strict=True))
    return list(map(read, jaxpr.outvars))
