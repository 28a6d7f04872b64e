"""Trains a language model in pipeline stages, and once more with plain Optax beside it.

A byte-level transformer learns the prose of the Python reference. Each stage of the
model lives on a device of its own, and so does its part of the optimizer's state. At the
end, the parameters are held against those of the same training with the optimizer on
the whole tree.

    python examples/pipeline_lm.py --stages 4 --optimizer adamw
"""

import argparse
import itertools
import sys
from pathlib import Path
from typing import Any, NamedTuple

import functional_opt as fo
import jax
import numpy as np
from lm.comparison import Difference, difference
from lm.display import Display, progress_bar
from lm.model import Model, Sizes, stage_of
from lm.picture import draw, Story
from lm.pipeline import Pipeline, stage_devices
from lm.text import every_byte, hold_out, load, random_batches, unigram_bits
from lm.training import bits, Run, train, Updates, WholeTree


REGISTRY = fo.Registry.of(fo.AdamW, fo.Adam, fo.Lion, fo.SGD)

MICROBATCHES, SEQUENCES = 4, 4
SIZES = Sizes(width=128, blocks=4, heads=4, length=128)


class Choice(NamedTuple):
    """Hyperparameters that suit this model."""

    peak_value: float
    fields: dict[str, Any]


CHOICES = {
    "adamw": Choice(3e-3, {"b2": 0.95}),
    "adam": Choice(3e-3, {"b2": 0.95}),
    "lion": Choice(5e-4, {}),
    "sgd": Choice(0.3, {"momentum": 0.9, "nesterov": True}),
}


def main(argv: list[str] | None = None) -> int:
    """Runs the job; 0 if both trainings ended with equal parameters."""
    options = parse(argv)
    pipeline = Pipeline(stage_devices(options.stages))
    train_text, validation_text = hold_out(load())
    recipe = make_recipe(options.optimizer, options.steps)
    model = make_model(options)
    partition = fo.partition(model, stage_of)
    print(f"{count(model):,} parameters in {options.stages} stages\n")

    staged = recipe.build_mpmd(model, partition)
    whole = WholeTree(recipe.build(), partition, pipeline)
    
    return 0


if __name__ == "__main__":
    sys.exit(main())
