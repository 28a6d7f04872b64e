"""The example: its text, its model and its pipeline."""

import functools
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import overlap
import pipeline_lm
import pytest
from jaxtyping import PyTree
from lm.comparison import difference
from lm.display import Display, progress_bar
from lm.model import cross_entropy, Model, number_of_parameters, Sizes
from lm.pipeline import Device, Pipeline, stage_devices
from lm.text import Batch, every_byte, hold_out, load, random_batches, unigram_bits


SIZES = Sizes(width=16, blocks=4, heads=2, length=8)


@functools.cache
def model_of(stages: int) -> Model:
    return Model(SIZES, stages, key=jax.random.key(0))


def batch_of(microbatches: int) -> Batch:
    (batch,) = random_batches(load(), (microbatches, 3, SIZES.length), steps=1, seed=0)
    return batch


def test_the_speed_leaves_out_the_first_step_which_compiles(monkeypatch):
    seconds = iter([60.0, 62.0, 64.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(seconds))
    bar = progress_bar(shown=False)
    display = Display(bar, "training", np.zeros(3))
    speeds = []
    for _ in range(3):
        display.advance(loss=1.0, tokens=100)
        speeds.append(bar.tasks[0].fields["speed"])
    assert speeds == [0, 50, 50]


def whole_loss(model: Model, batch: Batch) -> jax.Array:
    inputs, targets = (jnp.concatenate(list(part)) for part in batch)
    return cross_entropy(jax.vmap(model)(inputs), targets)


def to_float64(model: Model) -> Model:
    return jax.tree.map(
        lambda x: x.astype(jnp.float64) if eqx.is_inexact_array(x) else x, model
    )


def devices_of(tree: PyTree) -> set[Device]:
    return {device for leaf in jax.tree.leaves(tree) for device in leaf.devices()}


# In float64 the sums over microbatches and over the whole batch differ by rounding
# alone, some hundred times 2e-16 of what is summed. A mistake is 1e9 times larger.
@pytest.mark.parametrize("stages", [1, 2, 4])
def test_pipeline_computes_what_the_whole_model_does(stages):
    model, batch = model_of(stages), batch_of(microbatches=4)
    with jax.enable_x64(True):
        model = to_float64(model)
        partition = fo.partition(model, model.stage_of)
        pieces = partition.split(model)
        devices = stage_devices(stages)
        pipeline = Pipeline(pieces, devices)
        placed = pipeline.place(pieces)
        loss, grads = pipeline.loss_and_grads(placed, batch)
        validation = pipeline.loss(placed, batch)
        expected, expected_grads = eqx.filter_value_and_grad(whole_loss)(model, batch)

    assert loss is not None and validation is not None
    np.testing.assert_allclose(loss, expected, rtol=1e-13)
    np.testing.assert_allclose(validation, expected, rtol=1e-13)
    assert [devices_of(piece) for piece in grads] == [{device} for device in devices]
    actual_grads = eqx.combine(*jax.device_get(grads))
    assert difference(actual_grads, expected_grads).largest < 1e-12


def test_the_number_of_stages_does_not_change_the_model():
    leaves = [jax.tree.leaves(model_of(stages)) for stages in (1, 2, 3, 4)]
    sizes = {number_of_parameters(model_of(stages)) for stages in (1, 2, 3, 4)}
    assert len(sizes) == 1
    tokens = jnp.arange(SIZES.length)
    first, *others = (model_of(stages)(tokens) for stages in (1, 2, 3, 4))
    for other in others:
        np.testing.assert_array_equal(first, other)
    assert len({len(each) for each in leaves}) == 1


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_a_stage_has_its_leaves_and_no_others(stages):
    model = model_of(stages)
    pieces = fo.partition(model, model.stage_of).split(model)
    for number, piece in enumerate(pieces):
        arrays = eqx.filter(piece, eqx.is_inexact_array)
        own = eqx.filter(model.stage(number), eqx.is_inexact_array)
        fo.testing.assert_equal(jax.tree.leaves(arrays), jax.tree.leaves(own))


def test_a_model_with_more_stages_than_blocks_is_refused():
    with pytest.raises(ValueError, match="4 blocks has 1 to 4 stages, not 5"):
        model_of(5)


def test_the_model_does_not_see_what_comes_next():
    model = model_of(2)
    tokens = jnp.arange(SIZES.length)
    changed = tokens.at[5:].add(1)
    same, other = model(tokens), model(changed)
    np.testing.assert_array_equal(same[:5], other[:5])
    assert not np.array_equal(same[5:], other[5:])


def test_the_text_is_long_english_prose():
    text = load()
    assert len(text) > 300_000
    assert b"the" in text.tobytes()


def test_held_out_text_is_the_end():
    text = np.arange(105, dtype=np.uint8)
    train, held_out = hold_out(text)
    np.testing.assert_array_equal(np.concatenate([train, held_out]), text)
    assert len(held_out) == 10


def test_every_byte_is_predicted_once():
    text = np.arange(50, dtype=np.uint8)
    batch = every_byte(text, sequences=2, length=4)
    assert batch.inputs.shape == (6, 2, 4)
    np.testing.assert_array_equal(batch.inputs.ravel(), np.arange(48))
    np.testing.assert_array_equal(batch.targets.ravel(), np.arange(1, 49))


def test_batches_repeat_with_the_seed():
    def batches(seed: int) -> list[Batch]:
        return list(random_batches(load(), (2, 3, 5), steps=2, seed=seed))

    for one, again in zip(batches(1), batches(1), strict=True):
        np.testing.assert_array_equal(one, again)
        np.testing.assert_array_equal(one.inputs[..., 1:], one.targets[..., :-1])
    assert not np.array_equal(batches(1)[0], batches(2)[0])


def test_unigram_bits():
    every = np.arange(256, dtype=np.uint8)
    assert unigram_bits(every, every) == pytest.approx(8.0)
    # 3 of 4 bytes: counts of 768 and 256 once those of all bytes are made one more.
    often = np.repeat(np.array([0], np.uint8), 767)
    text = np.concatenate([often, np.array([1], np.uint8)])
    expected = -(np.log2(768 / 1024) + np.log2(2 / 1024)) / 2
    assert unigram_bits(text, text[-2:]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("actual", "words", "within"),
    [
        ([1, 2], "identical bit for bit", True),
        ([1, 2 + 2.4e-7], "1.2e-07 of the largest entry", True),
        ([1, 2.1], "OUTSIDE the bound of 1e-06", False),
        ([1, np.nan], "OUTSIDE", False),
    ],
)
def test_difference_in_words(actual, words, within):
    expected = {"a": jnp.float32([0.0]), "b": jnp.float32([1, 2])}
    found = difference({"a": jnp.float32([0.0]), "b": jnp.float32(actual)}, expected)
    assert words in str(found)
    assert found.within_bound == within


def test_difference_of_signed_zeros_is_no_identity():
    found = difference([jnp.float32([-0.0])], [jnp.float32([0.0])])
    assert not found.identical


@pytest.mark.parametrize("optimizer", sorted(pipeline_lm.REGISTRY))
def test_every_optimizer_has_its_hyperparameters(optimizer):
    schedule = pipeline_lm.make_schedule(optimizer, steps=5)
    recipe = pipeline_lm.make_recipe(optimizer, schedule)
    assert isinstance(recipe.optimizer, pipeline_lm.REGISTRY[optimizer])


def test_the_job(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(pipeline_lm, "SIZES", SIZES)
    folder = tmp_path / "not" / "there"
    assert pipeline_lm.main(["--steps=3", "--stages=2", f"--output={folder}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert Path(lines[-1]).read_bytes().startswith(b"\x89PNG")
    assert any("bits per byte" in line for line in lines)
    (costs,) = (line for line in lines if line.startswith("costs"))
    assert re.search(r" \d+ bytes exchanged .* [\d.]+ ms by stage, [\d.]+ ms on", costs)
    (start,) = (i for i, line in enumerate(lines) if line == "try next")
    for line in lines[start + 1 : start + 4]:
        given = line.partition(" -- ")[2].partition("#")[0].split()
        assert line.startswith("  python -m nox -s train -- ")
        assert pipeline_lm.parse(given)


def test_the_job_goes_on_from_a_checkpoint_in_other_stages(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(pipeline_lm, "SIZES", SIZES)
    saved = tmp_path / "saved"
    options = [f"--checkpoint={saved}", "--save-every=2", f"--output={tmp_path}"]
    assert pipeline_lm.main(["--steps=3", "--stages=1", *options]) == 0
    assert fo.Checkpoints(saved).steps == (2,)
    assert pipeline_lm.main(["--steps=5", "--stages=2", *options]) == 0
    assert fo.Checkpoints(saved).steps == (2, 4)
    printed = capsys.readouterr().out
    assert printed.count("resumes from step 2") == 1


def test_the_job_by_a_recipe_in_a_file(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(pipeline_lm, "SIZES", SIZES)
    recipe = Path(pipeline_lm.__file__).with_name("recipe.toml")
    arguments = ["--steps=10", "--stages=2", f"--output={tmp_path}"]
    options = pipeline_lm.parse([*arguments, f"--recipe={recipe}"])
    rates = pipeline_lm.rates_of(pipeline_lm.recipe_of(options), 10)
    assert rates[1:7] == pytest.approx(4e-3) and rates[9] < 2e-3
    assert pipeline_lm.main([*arguments, f"--recipe={recipe}"]) == 0
    assert "validation loss" in capsys.readouterr().out

    wrong = tmp_path / "wrong.toml"
    wrong.write_text(recipe.read_text() + "beta1 = 1\n")
    with pytest.raises(SystemExit):
        pipeline_lm.parse([f"--recipe={wrong}"])
    assert "schedule.beta1: unknown key of WarmupStable" in capsys.readouterr().err


def run_example(*options):
    done = subprocess.run(
        [sys.executable, Path(pipeline_lm.__file__), *options],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_two_processes_end_with_the_parameters_of_one(tmp_path, capsys):
    options = ["--steps=1", "--stages=2"]
    assert pipeline_lm.main([*options, f"--output={tmp_path}"]) == 0
    parameters = re.compile(r"stage \d +parameters \w{16}")
    alone = parameters.findall(capsys.readouterr().out)
    together = parameters.findall(run_example(*options, "--processes=2"))
    assert len(alone) == 2 and sorted(together) == alone


def test_the_command_line_helps():
    text = run_example("--help")
    for option in (
        "--stages",
        "--steps",
        "--optimizer",
        "--recipe",
        "--seed",
        "--checkpoint",
        "--processes",
        "--output",
    ):
        assert option in text


def test_the_timeline_has_every_program_of_each_stage(tmp_path, capsys, monkeypatch):
    for size in ("WIDTH", "ROWS"):
        monkeypatch.setattr(overlap, size, 32)
    picture = tmp_path / "timeline.png"
    adam, clipped = overlap.main(picture).values()
    assert "bit for bit" in capsys.readouterr().out and picture.stat().st_size > 10_000
    separate = {"forward", "backward", "stage_results"}
    for spans, programs in (
        (adam, separate),
        (clipped, separate | {"stage_messages", "gather"}),
    ):
        ran = [(s.device, s.program) for s in spans if s.program in overlap.COLOURS]
        every = itertools.product(range(overlap.STAGES), programs)
        assert sorted(ran) == sorted(every)
        ends = overlap.times(spans, "backward")
        for span in spans:
            if span.program in ("stage_messages", "stage_results"):
                assert span.start >= ends[span.device]
