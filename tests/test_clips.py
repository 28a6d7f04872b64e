"""Clips of gradients and updates, of the whole model and of groups."""

from typing import Any

import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from deep_models import deep, gradients, on_stages
from recipe_runs import PARAMS, recipe, run, SCHEDULE, THEIR_SCHEDULE
from rooms import library


OPTAX: list[tuple[Any, Any]] = [
    (fo.ClipByNorm(0.5), optax.clip_by_global_norm(0.5)),
    (fo.ClipByBlockRMS(0.4), optax.clip_by_block_rms(0.4)),
    (fo.AdaptiveClip(0.1), optax.adaptive_grad_clip(0.1)),
    (fo.AdaptiveClip(0.2, eps=0.5, axis=0), optax.adaptive_grad_clip(0.2, 0.5, 0)),
]


@pytest.mark.parametrize("clip, theirs", OPTAX)
def test_gradients_and_updates_as_optax_clips_them(clip, theirs):
    adamw = optax.adamw(THEIR_SCHEDULE, weight_decay=0.3)
    ours = recipe(
        optimizer=fo.AdamW(weight_decay=0.3), clip_norm=0.7, clip=clip, clip_update=clip
    )
    expected = optax.chain(optax.clip_by_global_norm(0.7), theirs, adamw, theirs)
    fo.testing.assert_equal(run(ours.build()).params, run(expected).params)


def test_of_groups():
    """Inside the learning rate of each group, and after the clip of the recipe."""
    groups = tuple(
        fo.Group(fo.Where(f"'{i} [en]"), fo.SGD(), schedule=0.2, clip=clip)
        for i, (clip, _) in enumerate(OPTAX)
    )
    ours = recipe(optimizer=fo.Groups(groups, rest=fo.SGD()), clip_norm=0.7)
    params = {f"{i} {name}": x for i in range(len(OPTAX)) for name, x in PARAMS.items()}
    parts: dict[Any, Any] = {
        str(i): optax.chain(theirs, optax.sgd(0.2))
        for i, (_, theirs) in enumerate(OPTAX)
    }
    parts["rest"] = optax.sgd(THEIR_SCHEDULE)
    labels = {name: "rest" if "body" in name else name[0] for name in params}
    expected = optax.chain(
        optax.clip_by_global_norm(0.7),
        optax.partition(parts, labels),
    )
    options: Any = dict(params=params, grads_of=lambda x, _: jax.tree.map(jnp.sin, x))
    found = run(ours.build(), **options)
    fo.testing.assert_equal(found.params, run(expected, **options).params)
    # The norm that is reported is that of the whole model.
    norm: Any = ours.metrics(run(ours.build(), 1, **options).state).gradient_norm
    expected_norm: Any = optax.tree.norm(jax.tree.map(jnp.sin, params))
    assert float(norm) == pytest.approx(float(expected_norm))


def test_a_clip_of_a_group_is_not_the_norm_that_is_reported():
    group = fo.Group(fo.Where("embed"), fo.SGD(), clip=fo.ClipByNorm(0.1))
    ours = recipe(optimizer=fo.Groups((group,), rest=fo.SGD()))
    assert ours.metrics(ours.build().init(PARAMS)).gradient_norm is None


def test_updates_of_a_group():
    group = fo.Group(
        fo.Where("embed"), fo.AdamW(weight_decay=3.0), clip_update=fo.ClipByNorm(0.1)
    )
    ours = recipe(optimizer=fo.Groups((group,), rest=fo.SGD()), schedule=0.5)
    updates = run(ours.build(), 1).updates[0]
    assert optax.tree.norm(updates["embed"]) == pytest.approx(0.1)
    assert optax.tree.norm(updates["body"]) > 0.1
    assert "AdamW" in ours.explain(PARAMS) and "Clipped" not in ours.explain(PARAMS)


def test_recent_norms_against_numpy():
    window, sigma = 6, 1.0
    scales = np.random.default_rng(0).lognormal(size=30)
    clip = fo.ClipByRecentNorms(window=window, sigma=sigma)
    ours = recipe(optimizer=fo.SGD(), schedule=1.0, clip_update=clip).build()
    state, update = ours.init(PARAMS), jax.jit(ours.update)
    norms: list[float] = []
    num_clipped = 0
    for scale in scales:
        grads = jax.tree.map(lambda x, s=scale: jnp.float32(s) * x, PARAMS)
        updates, state = update(grads, state, PARAMS)
        norm = float(optax.tree.norm(grads))
        last = np.array(norms[-window:])
        largest = np.inf
        if len(last) >= max(2, window // 2):
            largest = last.mean() + sigma * last.std(ddof=1)
        expected = min(norm, largest)
        assert float(optax.tree.norm(updates)) == pytest.approx(expected, rel=1e-5)
        num_clipped += norm > largest
        norms.append(norm)
    assert num_clipped > 2


@pytest.mark.parametrize("clip", [clip for clip, _ in OPTAX])
def test_narrow_gradients_are_clipped_in_float32(clip):
    """A sum of squares in bfloat16 would stop growing."""
    params = {"w": jnp.ones((64, 64), "bfloat16")}
    grads = jax.tree.map(lambda x: 100 * x, params)
    wide: Any = jax.tree.map(lambda x: x.astype("float32"), (grads, params))
    tx = clip.build()
    found = tx.update(grads, tx.init(params), params)[0]
    expected = tx.update(wide[0], tx.init(wide[1]), wide[1])[0]
    rounded = jax.tree.map(lambda x: x.astype("bfloat16"), expected)
    fo.testing.assert_equal(found, rounded)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: fo.ClipByNorm(0.0), r"`ClipByNorm.max_norm` must be greater than 0"),
        (lambda: fo.AdaptiveClip(-1.0), r"`AdaptiveClip.clipping` must be greater"),
        (lambda: fo.ClipByRecentNorms(window=1), r"`ClipByRecentNorms.window` must be"),
        (lambda: recipe(clip=1.0), "`Recipe.clip` must be .* ClipByBlockRMS"),
    ],
)
def test_wrong_values(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


CLIPS = [*(clip for clip, _ in OPTAX), fo.ClipByRecentNorms(window=4)]


@pytest.mark.parametrize("suffix", ["toml", "yaml", "json"])
def test_files(tmp_path, suffix):
    path = tmp_path / f"recipe.{suffix}"
    groups = tuple(fo.Group(fo.Where("a"), fo.SGD(), clip=x) for x in CLIPS)
    ours = recipe(optimizer=fo.Groups(groups), clip=CLIPS[2], clip_update=CLIPS[4])
    library().save(ours, path)
    assert library().load(path, fo.Recipe) == ours


def test_clips_of_each_parameter_on_eight_stages():
    """They exchange nothing; Optax has units of the adaptive clip up to rank 2."""
    params = {k: x for k, x in deep(52).items() if x.ndim in (1, 2)}
    params = {f"layer {i:02d}": x for i, x in enumerate([*params.values()][:40])}
    for name in [*params][::3]:
        params[name] = params[name].astype("bfloat16")
    rms, adaptive = CLIPS[1:3]
    group = fo.Group(fo.Where("layer 1"), fo.Lion(), clip=adaptive, clip_update=rms)
    ours = recipe(
        optimizer=fo.Groups((group,), rest=fo.AdamW()),
        schedule=0.1,
        clip_norm=0.5,
        clip=rms,
        clip_update=adaptive,
        weight_decay=0.1,
    )
    grads = gradients(params)
    staged = fo.testing.assert_stage_local_equal(
        ours.build(), params, on_stages(params), grads=grads
    )
    assert staged.rounds == 1


def test_norms_of_groups_on_eight_stages():
    """The norm of a group that spans stages is computed for the group as a whole.

    XLA stores a clipped gradient that a second norm reads. A stage computes it anew in
    the kernel of the step, where LLVM contracts other multiplications with additions:
    the moments, in which old and new gradients cancel, differ by rounding.
    """
    params = deep()
    norm, recent = CLIPS[0], CLIPS[4]
    group = fo.Group(fo.Where("layer 1"), fo.Lion(), clip=norm, clip_update=recent)
    ours = recipe(
        optimizer=fo.Groups((group,), rest=fo.AdamW()),
        schedule=SCHEDULE,
        clip_norm=0.5,
        clip_update=norm,
        weight_decay=0.1,
        skip_nonfinite=True,
    )
    staged = fo.testing.assert_stage_local_equal(
        ours.build(),
        params,
        on_stages(params),
        grads=gradients(params, bad=(1,)),
        grade="bounded",
    )
    assert staged.rounds == 4


def test_a_clip_before_sums_of_the_optimizer_itself():
    """As above: the sums of Mechanize read the clipped gradient, too."""
    params = deep(5)
    optimizer = fo.Mechanize(base_optimizer=fo.AdamW())
    ours = recipe(optimizer=optimizer, schedule=1.0, clip=fo.AdaptiveClip(0.01))
    fo.testing.assert_stage_local_equal(
        ours.build(),
        params,
        on_stages(params, stages=3),
        grads=gradients(params),
        grade="bounded",
    )


@pytest.mark.parametrize("axis", [1, -2, (0, 1)])
def test_axes_that_parameters_do_not_have(axis):
    clip = fo.AdaptiveClip(0.1, axis=axis)
    message = r"`AdaptiveClip.axis` = .* `\['norm'\]` of shape \(2,\) does not have"
    with pytest.raises(ValueError, match=message):
        recipe(clip=clip).build().init(PARAMS)
    group = fo.Group(fo.Where(min_ndim=2), fo.SGD(), clip=clip)
    recipe(optimizer=fo.Groups((group,), rest=fo.SGD())).build().init(PARAMS)


@pytest.mark.parametrize("clip", [fo.ClipByNorm(0.5), fo.ClipByRecentNorms(window=4)])
def test_the_norm_before_a_clip_is_reported(clip):
    """By the recipe's own clip and not by that of a group, from one reduction."""
    grads = jax.tree.map(lambda x: jnp.sin(3 * x), PARAMS)
    in_group = fo.Groups(
        (fo.Group(fo.Where("norm"), fo.SGD(), clip=clip),), rest=fo.SGD()
    )
    for options in ({}, {"track_norm": True}, {"clip_norm": 0.2}):
        ours = recipe(optimizer=in_group, clip=clip, **options)
        tx = ours.build()
        _, state = tx.update(grads, tx.init(PARAMS), PARAMS)
        fo.testing.assert_equal(
            ours.metrics(state).gradient_norm, optax.tree.norm(grads), grade="close"
        )
    ours = recipe(optimizer=fo.SGD(), clip=clip, track_norm=True)
    partition = fo.partition(PARAMS, {"embed": 0, "body": 1, "norm": 2})
    assert ours.build_mpmd(PARAMS, partition).rounds == 1
