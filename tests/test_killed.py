"""A training that is killed at random points loses nothing that it has saved."""

import contextlib
import os
import random
import subprocess
import sys
import time
from typing import Any

import functional_opt as fo
import jax
import killed_training
import optax
from killed_training import EVERY, gradients, make_params, TX
from ports import free_port


KILLS = int(os.environ.get("KILLS", "3"))
SEED = int(os.environ.get("SEED", "0"))
STEPS = 16 * KILLS  # more than it gets to before the last kill


@contextlib.contextmanager
def training(directory, processes):
    """A training in some processes, which are all gone afterwards."""
    options = [directory, STEPS, free_port(), processes]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    started: list[Any] = [
        subprocess.Popen(
            [sys.executable, killed_training.__file__, *map(str, [*options, process])],
            env={**environment, "XLA_FLAGS": ""},
            stdout=subprocess.PIPE,
            text=True,
        )
        for process in range(processes)
    ]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()
            process.stdout.close()


def steps_in(lines):
    """JAX has a word to say, too."""
    return (int(line) for line in lines if line.strip().isdigit())


def run_and_kill(directory, chance, pause):
    """What the first process said it saved, and the time between saves.

    One process is killed at a random point, the others some time later.
    """
    steps, times = [], []
    with training(directory, processes=chance.randint(1, 2)) as processes:
        said = steps_in(processes[0].stdout)
        for _ in range(chance.randint(1, 4)):
            steps.append(next(said))
            times.append(time.monotonic())
        first, *others = chance.sample(processes, len(processes))
        time.sleep(chance.uniform(0, pause))
        assert first.poll() is None, "It was over before it was killed."
        first.kill()
        time.sleep(chance.uniform(0, pause))
        for process in others:
            process.kill()
        steps += said
    return steps, (times[-1] - times[0]) / (len(times) - 1) if times[1:] else pause


@jax.jit
def whole_step(grads, state, params):
    updates, state = TX.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def train_without_a_break():
    params = make_params()
    state = jax.jit(TX.init)(params)
    for step in range(STEPS):
        params, state = whole_step(gradients(params, step), state, params)
    return params, state


def test_nothing_is_lost_but_the_steps_since_the_last_save(tmp_path):
    print(f"SEED={SEED}, {KILLS} kills")
    chance = random.Random(SEED)
    saved, torn, pause = 0, 0, 0.2
    for kill in range(KILLS):
        (first, *later), pause = run_and_kill(tmp_path, chance, pause)
        # A save may be complete without a word of it.
        assert saved <= first <= saved + EVERY, f"kill {kill}"
        saved = max([first, *later])
        torn += any(not path.name.isdigit() for path in tmp_path.iterdir())
    print(f"{torn} kills left a checkpoint that was not complete")
    with training(tmp_path, processes=1) as (process,):
        last = max(steps_in(process.stdout))
        assert (process.wait(), last) == (0, STEPS)

    params, state = train_without_a_break()
    restored = fo.Checkpoints(tmp_path).restore(params, state)
    fo.testing.assert_equal(tuple(restored), (STEPS, params, state))
