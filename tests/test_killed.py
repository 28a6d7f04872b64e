"""A training that is killed at random points loses nothing that it has saved."""

import os
import random
import subprocess
import sys
import time

import functional_opt as fo
import jax
import killed_training
import optax
from killed_training import EVERY, gradients, make_params, TX


KILLS = int(os.environ.get("KILLS", "3"))
SEED = int(os.environ.get("SEED", "0"))
STEPS = 16 * KILLS  # more than it gets to before the last kill


def start(directory):
    return subprocess.Popen(
        [sys.executable, killed_training.__file__, str(directory), str(STEPS)],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "XLA_FLAGS": "",
        },
        stdout=subprocess.PIPE,
        text=True,
    )


def run_and_kill(directory, chance, pause):
    """Where a run started from, what it said it saved, and the time between saves."""
    steps, times = [], []
    with start(directory) as process:
        assert process.stdout is not None
        for _ in range(chance.randint(1, 4)):
            steps.append(int(process.stdout.readline()))
            times.append(time.monotonic())
        time.sleep(chance.uniform(0, pause))
        process.kill()
        steps += map(int, process.stdout.read().split())
    assert process.returncode == -9, "It was over before it was killed."
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
    with start(tmp_path) as process:
        assert process.stdout is not None
        last = [int(line) for line in process.stdout][-1]
    assert (process.returncode, last) == (0, STEPS)

    params, state = train_without_a_break()
    restored = fo.Checkpoints(tmp_path).restore(params, state)
    fo.testing.assert_equal(tuple(restored), (STEPS, params, state))
