"""A training that is killed at random points loses nothing that it has saved."""

import contextlib
import multiprocessing
import os
import random
import time

import functional_opt as fo
import jax
import killed_training
import optax
from killed_training import EVERY, gradients, make_params, TX
from ports import free_port


KILLS = int(os.environ.get("KILLS", "3"))
SEED = int(os.environ.get("SEED", "0"))
STEPS = 16 * KILLS  # more than it gets to before the last kill

# Forks of a process that has imported JAX and not started it: most of the time of a
# short training run is imports.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["killed_training"])


@contextlib.contextmanager
def training(directory, processes):
    """A training in some processes, which are all gone afterwards."""
    receiver, sender = CONTEXT.Pipe(duplex=False)
    options = (str(directory), STEPS, free_port(), processes)
    started = [
        CONTEXT.Process(
            target=killed_training.main, args=(*options, process, sender), daemon=True
        )
        for process in range(processes)
    ]
    for process in started:
        process.start()
    sender.close()  # The end comes when the first process is gone.
    try:
        yield started, steps_in(receiver)
    finally:
        for process in started:
            process.kill()
            process.join()
        receiver.close()


def steps_in(receiver):
    """What the first process says, to its end."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            yield receiver.recv()


def run_and_kill(directory, chance, pause):
    """What the first process said it saved, and the time between saves.

    One process is killed at a random point, the others some time later.
    """
    steps, times = [], []
    with training(directory, processes=chance.randint(1, 2)) as (processes, said):
        for _ in range(chance.randint(1, 4)):
            steps.append(next(said))
            times.append(time.monotonic())
        first, *others = chance.sample(processes, len(processes))
        time.sleep(chance.uniform(0, pause))
        assert first.exitcode is None, "It was over before it was killed."
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
        # Two saves may be complete without a word of it: one in the background, and
        # the one after it.
        assert saved <= first <= saved + 2 * EVERY, f"kill {kill}"
        saved = max([first, *later])
        torn += any(not path.name.isdigit() for path in tmp_path.iterdir())
    print(f"{torn} kills left a checkpoint that was not complete")
    with training(tmp_path, processes=1) as ((process,), said):
        last = max(said)
        process.join()
        assert (process.exitcode, last) == (0, STEPS)

    params, state = train_without_a_break()
    restored = fo.Checkpoints(tmp_path).restore(params, state)
    fo.testing.assert_equal(tuple(restored), (STEPS, params, state))
