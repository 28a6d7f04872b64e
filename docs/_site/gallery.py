"""Pictures of every schedule and every optimizer, drawn by the library."""

import ast
import doctest
import functools
import inspect
import io
from collections.abc import Callable, Iterator
from typing import Any

import functional_opt as fo
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import public_names
from matplotlib.figure import Figure


INK, PATH = "#888888", "#3f6fd8"
STEPS = 60
RATES = np.geomspace(1e-3, 1e3, 31)

# Optimizers without a path of their own, and why.
NOT_DRAWN = {
    fo.DPSGD: "requires a gradient for each example",
    fo.Frozen: "does not change its parameters",
    fo.Lookahead: "requires pairs of parameters",
    fo.Hyperball: "keeps the norm, which is that of the start",
    fo.QKClip: "needs the logits of an attention layer",
    fo.Groups: "applies the steps of its optimizers",
}


def concrete(base: type) -> list[Any]:
    """The public classes of a kind, by their names."""
    found = public_names.public().values()
    kinds = [x for x in found if isinstance(x, type) and issubclass(x, base)]
    return sorted((x for x in kinds if not inspect.isabstract(x)), key=_name)


def _name(value: Any) -> str:
    return value.__name__


def example(cls: Any) -> Any:
    """An instance: the defaults, or that of the example in its docstring."""
    try:
        return cls()
    except (TypeError, ValueError):
        return _documented(cls)


def _documented(cls: Any) -> Any:
    names: dict[str, Any] = {}
    for line in doctest.DocTestParser().get_examples(inspect.getdoc(cls) or ""):
        for node in ast.walk(ast.parse(line.source)):
            if (
                isinstance(node, ast.Call)
                and ast.unparse(node.func) == f"fo.{_name(cls)}"
            ):
                return eval(ast.unparse(node), names)
        exec(line.source, names)
    raise ValueError(f"the example of `{cls.__name__}` makes no instance of it")


def svg(draw: Callable[[Any], None], width: float, height: float) -> str:
    """A picture for a light and for a dark page."""
    settings: Any = {
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "font.size": 8,
        "svg.fonttype": "none",
        "svg.hashsalt": "functional_opt",
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return file.getvalue()


def schedule_picture(schedule: Any) -> str:
    *_, (_, last) = schedule.phases()
    endless = None if last is not None else 5 * max(schedule.corners()) or 40

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        schedule.plot(axes, endless)
        axes.spines[["top", "right"]].set_visible(False)

    return svg(draw, 4.2, 2.2)


def quadratic(x: Any, y: Any) -> Any:
    return 0.5 * (x**2 + 20 * y**2)


def rosenbrock(x: Any, y: Any) -> Any:
    return (1 - x) ** 2 + 5 * (y - x**2) ** 2


FUNCTIONS = (
    (quadratic, (-2.0, 1.0), (0.0, 0.0), ((-2.4, 1.4), (-1.4, 1.4))),
    (rosenbrock, (-1.2, 0.6), (1.0, 1.0), ((-1.8, 1.8), (-0.8, 2.2))),
)


def paths(optimizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """The path over each function at the rate that ends lowest, and these rates."""
    functions = [function for function, *_ in FUNCTIONS]
    starts = jnp.array([start for _, start, *_ in FUNCTIONS])

    def loss(params: Any, which: Any) -> Any:
        # A matrix, because some optimizers treat matrices in a way of their own.
        x, y = params["matrix"].reshape(2)
        return jax.lax.switch(which, functions, x, y)

    def run(which: Any, rate: Any) -> Any:
        transformation = optimizer.build(rate)
        params = {"matrix": starts[which].reshape(2, 1)}

        def step(carry: Any, _: Any) -> Any:
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params, which)
            known = {
                "value": value,
                "grad": grads,
                "value_fn": lambda params: loss(params, which),
                "obj_fn": lambda params: loss(params, which),
            }
            extra_args = {name: known[name] for name in optimizer.extra_args()}
            updates, state = transformation.update(grads, state, params, **extra_args)
            return (optax.apply_updates(params, updates), state), params["matrix"][:, 0]

        start = params, transformation.init(params)
        (params, _), path = jax.lax.scan(step, start, length=STEPS)
        return jnp.concatenate([path, params["matrix"].T]), loss(params, which)

    each = jnp.arange(len(FUNCTIONS))
    sweep = jax.vmap(jax.vmap(run, (None, 0)), (0, None))
    found, losses = jax.jit(sweep)(each, jnp.asarray(RATES, jnp.float32))
    best = np.argmin(np.nan_to_num(np.asarray(losses), nan=np.inf), axis=1)
    return np.asarray(found)[np.arange(len(best)), best], RATES[best]


def optimizer_picture(optimizer: Any) -> str:
    found, rates = paths(optimizer)

    def draw(figure: Any) -> None:
        axes = figure.subplots(1, len(FUNCTIONS))
        for ax, function, path, rate in zip(axes, FUNCTIONS, found, rates, strict=True):
            _contours(ax, *function)
            ax.plot(*path.T, "-o", color=PATH, markersize=2, linewidth=1)
            ax.set_title(f"learning rate {rate:.2g}", fontsize=8)

    return svg(draw, 5.6, 2.4)


def _contours(ax: Any, function: Any, start: Any, end: Any, limits: Any) -> None:
    x, y = np.meshgrid(*(np.linspace(low, high, 120) for low, high in limits))
    levels = np.geomspace(0.02, 40, 12)
    ax.contour(x, y, function(x, y), levels, colors=INK, linewidths=0.4, alpha=0.7)
    ax.plot(*end, "*", color="#d8503f", markersize=8)
    ax.set(xlim=limits[0], ylim=limits[1], xticks=[], yticks=[])


@functools.cache
def files() -> tuple[tuple[str, str], ...]:
    """The two pages and their pictures."""
    return (*_page("schedules"), *_page("optimizers"))


def _page(name: str) -> Iterator[tuple[str, str]]:
    base, picture, words = PAGES[name]
    parts = [words]
    for cls in concrete(base):
        if cls in NOT_DRAWN:
            continue
        instance = example(cls)
        path = f"{cls.__name__.lower()}.svg"
        yield f"gallery/{name}/{path}", picture(instance)
        parts.append(
            f"## {cls.__name__}\n\n[`{instance}`][functional_opt.{cls.__name__}]\n\n"
            f"![{cls.__name__}]({name}/{path}){{ loading=lazy }}"
        )
    left_out = [
        f"[`{cls.__name__}`][functional_opt.{cls.__name__}] {why}."
        for cls, why in NOT_DRAWN.items()
        if issubclass(cls, base)
    ]
    yield f"gallery/{name}.md", "\n\n".join([*parts, *left_out]) + "\n"


PAGES = {
    "schedules": (
        fo.AbstractSchedule,
        schedule_picture,
        "# Schedules\n\nThe value over the number of completed updates, with a dot "
        "where phases meet. Each schedule is the one of the example in its docstring, "
        "drawn by its own method `plot`.",
    ),
    "optimizers": (
        fo.AbstractOptimizer,
        optimizer_picture,
        "# Optimizers\n\nEvery optimizer with its default hyperparameters on the same "
        f"two functions: {STEPS} steps over $\\frac12(x^2 + 20y^2)$ and over "
        "$(1-x)^2 + 5(y-x^2)^2$, whose minima are marked by stars. Of "
        f"{len(RATES)} learning rates between {RATES[0]:.0e} and {RATES[-1]:.0e}, "
        "each picture has the one whose last loss is the lowest.\n\nTwo numbers are "
        "not a neural network: a good path here does not predict a good loss there. "
        "The parameter is a matrix with two rows and one column.",
    ),
}
