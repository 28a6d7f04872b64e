"""Trains a language model in pipeline stages, and compares it with plain Optax.

A byte-level transformer learns the text of the Python reference. Each stage of the
model is on its own device, with its part of the optimizer state. At the end, the
parameters are compared with those of the same training with the optimizer on the whole
tree.

    python examples/pipeline_lm.py --stages 4 --optimizer adamw
    python examples/pipeline_lm.py --recipe examples/recipe.toml

With `--checkpoint DIR` it saves checkpoints, and resumes from the last one with any
number of stages. Both trainings then start from the same checkpoint.

With `--processes N` the stages run in N processes on this machine; with `--distributed`
in the processes that a cluster has started. These train in stages only, since none of
them holds the whole tree. Checksums show that the parameters equal those of a single
process.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import functional_opt as fo
import jax
import numpy as np
from jaxtyping import Float
from lm.comparison import difference
from lm.display import Display, progress_bar
from lm.model import Model, number_of_parameters, Sizes
from lm.picture import draw, Story
from lm.pipeline import Device, Pipeline, stage_devices
from lm.processes import add_arguments, join, launch
from lm.report import checksums, costs, milliseconds, NEXT, report
from lm.text import every_byte, hold_out, load, random_batches, unigram_bits
from lm.training import bits, Progress, Run, train, Updates, WholeTree


REGISTRY = fo.Registry.of(fo.AdamW, fo.Adam, fo.Lion, fo.SGD)
KNOWN_TO_FILES = REGISTRY | fo.Registry.of(
    fo.Muon, fo.Groups, fo.Constant, fo.Cosine, fo.Linear, fo.WarmupStableDecay
)

SIZES = Sizes(width=128, blocks=4, heads=4, length=64)
MICROBATCHES, SEQUENCES = 4, 4


Rates = Float[np.ndarray, " steps"]


class Suited(NamedTuple):
    """Default hyperparameters for this model."""

    peak_value: float
    others: dict[str, Any]


SUITED = {
    "adamw": Suited(4e-3, {"b2": 0.95}),
    "adam": Suited(4e-3, {"b2": 0.95}),
    "lion": Suited(5e-4, {}),
    "sgd": Suited(0.3, {"momentum": 0.9, "nesterov": True}),
}


class Job:
    """The configuration of a training run."""

    def __init__(self, options: argparse.Namespace, devices: Sequence[Device]):
        self.options = options
        self._train_text, held_out = hold_out(load())
        self._validation = every_byte(held_out, SEQUENCES, SIZES.length)
        self.model = Model(SIZES, options.stages, key=jax.random.key(options.seed))
        self.partition = fo.partition(self.model, self.model.stage_of)
        self._pieces = self.partition.split(self.model)
        self.pipeline = Pipeline(self._pieces, devices)
        self.recipe = recipe_of(options)
        directory = options.checkpoint
        self._checkpoints = None if directory is None else fo.Checkpoints(directory, 3)
        self.rates = rates_of(self.recipe, options.steps)

    def start(self, staged: fo.StageLocal) -> Progress:
        """The initial training state, or that of the last checkpoint."""
        pieces = self.pipeline.place(self._pieces)
        states = staged.init(pieces)
        if self._checkpoints is None or self._checkpoints.latest is None:
            return Progress(0, pieces, states)
        return Progress(*self._checkpoints.restore(pieces, states, staged))

    def on_one_device(self, progress: Progress, staged: fo.StageLocal) -> Progress:
        """The initial training state of plain Optax."""
        state = staged.merge_state(progress.states)
        device = self.pipeline.devices[0]
        return progress._replace(states=jax.device_put(state, device))

    def saver(self, staged: fo.StageLocal) -> Callable[[Progress], None]:
        """Saves a checkpoint at regular steps, if a directory is set."""

        def save(progress: Progress) -> None:
            if self._checkpoints and progress.step % self.options.save_every == 0:
                self._checkpoints.save(*progress, staged)

        return save

    def run(self, optimizer: Updates, start: Progress, **options: Any) -> Run:
        """Trains to the end, always on the same batches."""
        batches = random_batches(
            self._train_text,
            (MICROBATCHES, SEQUENCES, SIZES.length),
            self.options.steps,
            self.options.seed,
        )
        return train(optimizer, start, self.pipeline, batches, **options)

    def whole_model(self, run: Run) -> Model:
        """The trained stages, merged into one model."""
        return self.partition.merge(run.pieces)

    def validate(self, run: Run) -> float:
        """Bits per byte of the validation text; NaN in processes without the losses."""
        loss = self.pipeline.loss(run.pieces, self._validation)
        return math.nan if loss is None else bits(loss)

    def byte_frequencies(self) -> float:
        """Bits per byte of a model of byte frequencies on the same text."""
        return unigram_bits(self._train_text, self._validation.targets)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the job. Returns 1 if the two results differ by more than the bound."""
    options = parse(arguments)
    if options.processes > 1:
        given = sys.argv[1:] if arguments is None else arguments
        return launch(Path(__file__), given, options.processes)
    join(options)
    job = Job(options, stage_devices(options.stages))
    if job.pipeline.has_loss:
        print(f"{number_of_parameters(job.model):,} parameters on {job.pipeline}")
        print("the loss is in bits per byte\n")
    return train_alone(job) if jax.process_count() == 1 else train_together(job)


def train_alone(job: Job) -> int:
    """Trains in stages and on the whole tree, and compares the results."""
    started, options = time.perf_counter(), job.options
    staged = job.recipe.build_mpmd(job.model, job.partition)
    whole = WholeTree(job.recipe.build(), job.partition, job.pipeline)
    start = job.start(staged)
    announce(start, options)
    with progress_bar() as progress:
        display = Display(progress, "by stage", job.rates)
        by_stage = job.run(staged, start, display=display, save=job.saver(staged))
        display = Display(progress, "whole tree", job.rates)
        at_once = job.run(whole, job.on_one_device(start, staged), display=display)
    apart = difference(job.whole_model(by_stage), job.whole_model(at_once))
    story = Story(
        title=f"{name_of(job.recipe)} on {options.stages} pipeline stages",
        staged=by_stage.losses,
        whole=at_once.losses,
        rates=job.rates,
        validation=job.validate(by_stage),
        unigram=job.byte_frequencies(),
        verdict=str(apart),
        costs=costs(
            staged, milliseconds(staged, by_stage), milliseconds(whole, at_once)
        ),
    )
    print(f"\n{staged}\n\n{report(story)}\n{checksums(by_stage)}")
    print(f"took               {time.perf_counter() - started:.0f} s\n\n{NEXT}")
    print(draw(story, options.output / "pipeline_lm.png"))
    return 0 if apart.within_bound else 1


def announce(start: Progress, options: argparse.Namespace) -> None:
    """Prints the step from which the training resumes, if it does."""
    if start.step:
        print(f"resumes from step {start.step} in {options.checkpoint}\n", flush=True)


def train_together(job: Job) -> int:
    """Trains in stages, as one of several processes."""
    meshes = job.pipeline.devices
    staged = job.recipe.build_mpmd(job.model, job.partition, meshes=meshes)
    start = job.start(staged)
    if job.pipeline.has_loss:
        announce(start, job.options)
    with progress_bar(job.pipeline.has_loss) as progress:
        display = Display(progress, "by stage", job.rates)
        run = job.run(staged, start, display=display, save=job.saver(staged))
    validation = job.validate(run)
    print(checksums(run), flush=True)
    if job.pipeline.has_loss:
        print(f"\n{staged}\n")
        print(f"last loss          {run.losses[-1]:.3f}")
        print(f"validation loss    {validation:.3f} bits per byte", flush=True)
    return 0


def recipe_of(options: argparse.Namespace) -> fo.Recipe:
    """The recipe of the file, if given, or else the default one of the optimizer."""
    if options.recipe is None:
        schedule = make_schedule(options.optimizer, options.steps)
        return make_recipe(options.optimizer, schedule)
    updates = max(options.steps // options.recipe.accumulate, 1)
    return options.recipe.resolve(updates)


def rates_of(recipe: fo.Recipe, steps: int) -> Rates:
    """The learning rate at each step."""
    schedule = recipe.schedule
    assert callable(schedule)  # A number given as the schedule is a `Constant`.
    return np.asarray(schedule(np.arange(steps) // recipe.accumulate))


def name_of(recipe: fo.Recipe) -> str:
    """The name of the optimizer, as in a file."""
    return type(recipe.optimizer).__name__.lower()


def make_schedule(optimizer: str, steps: int) -> fo.Cosine:
    """A schedule for this optimizer over the whole training."""
    peak_value = SUITED[optimizer].peak_value
    return fo.Cosine(
        peak_value=peak_value,
        warmup_steps=steps // 10,
        decay_steps=steps,
        end_value=peak_value / 20,
    )


def make_recipe(name: str, schedule: fo.Cosine) -> fo.Recipe:
    """A typical recipe for this optimizer."""
    optimizer = REGISTRY[name](**SUITED[name].others)
    assert isinstance(optimizer, fo.AbstractOptimizer)
    return fo.Recipe(
        optimizer=optimizer,
        schedule=schedule,
        clip_norm=1.0,
        weight_decay=0.1,
        decay_where=fo.Where(min_ndim=2),
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=str(__doc__).partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--stages",
        type=int,
        choices=range(1, SIZES.blocks + 1),
        default=4,
        help="number of stages and devices",
    )
    parser.add_argument("--optimizer", choices=sorted(REGISTRY), default="adamw")
    parser.add_argument(
        "--recipe",
        type=_recipe,
        metavar="FILE",
        help="a recipe in TOML, YAML or JSON, instead of the default one",
    )
    parser.add_argument("--steps", type=_positive, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--checkpoint",
        type=Path,
        help="directory of checkpoints, to save to and to resume from",
    )
    parser.add_argument(
        "--save-every",
        type=_positive,
        default=50,
        help="number of steps between checkpoints",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("out"), help="file of the plot"
    )
    add_arguments(parser)
    return parser.parse_args(arguments)


def _recipe(path: str) -> fo.Recipe:
    try:
        return KNOWN_TO_FILES.load(path, fo.Recipe)
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


if __name__ == "__main__":
    sys.exit(main())
