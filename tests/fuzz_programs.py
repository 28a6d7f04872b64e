"""Random programs through the slicer, in one process after the other.

A process runs 2,000 of them, since what it has compiled is never freed. A cache on disk
passes compiled operations on to the next one.

python tests/fuzz_programs.py 100000 [SEED]

Of 10 programs, 8 run one operation after the other, half of them with 64 bits, one is
compiled, and one is compiled and rounds. The counts tell how many were exact, close or
bounded, and how many were refused. A program that gives a wrong result is printed.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from typing import Any

import jax
from functional_opt.testing import assert_equal, Grade
from hypothesis import given, HealthCheck, Phase, seed as seeded, settings
from programs import evaluate, programs, smooth_programs
from test_fuzz import compiled, results_by_stage, sliced, wanted_by_stage


CHUNK = 2000
GRADES: tuple[Grade, ...] = ("exact", "close", "bounded")


def outcome(program: Any, seed: int, execute: Any, grades: Any) -> str:
    """Refused, or the first grade that the results have."""
    args = program.arguments(seed)
    closed, slices = sliced(program, args)
    if slices is None:
        return "refused"
    expected = execute(closed, args)
    found = results_by_stage(program, slices, args, execute)
    wanted = [[expected[i] for i in held] for held in wanted_by_stage(program)]
    for grade in grades[:-1]:
        try:
            assert_equal(found, wanted, grade)
        except AssertionError:
            continue
        return grade
    assert_equal(found, wanted, grades[-1])
    return grades[-1]


def count(strategy: Any, examples: int, seed: int, run: Any) -> Counter[str]:
    """Draws programs, and counts their outcomes; prints those that fail."""
    found: Counter[str] = Counter()

    @seeded(seed)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=[*HealthCheck.__members__.values()],
    )
    @given(strategy)
    def each(program: Any) -> None:
        try:
            found[run(program)] += 1
        except Exception as error:
            found["wrong"] += 1
            reason = str(error).splitlines()[:2]
            print(f"seed {seed}: {program!r}: {type(error).__name__}: {reason}")

    each()
    return found


def chunk(seed: int, examples: int) -> Counter[str]:
    """The outcomes of the programs of a seed."""

    def narrow(program: Any) -> str:
        return outcome(program, seed % 10, evaluate, ["exact"])

    def wide(program: Any) -> str:
        with jax.enable_x64(True):
            return narrow(program)

    def together(program: Any) -> str:
        return outcome(program, seed % 10, compiled, ["exact"])

    def rounding(program: Any) -> str:
        return outcome(program, seed % 10, compiled, GRADES)

    tenth = max(examples // 10, 1)
    found = count(programs(), 4 * tenth, seed, narrow)
    found += count(programs(), 4 * tenth, seed + 1, wide)
    found += count(programs(), tenth, seed + 2, together)
    return found + count(smooth_programs(), tenth, seed + 3, rounding)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="compiled") as folder:
        cache = {
            "JAX_COMPILATION_CACHE_DIR": folder,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        run({**os.environ, **cache})


def run(env: dict[str, str]) -> None:
    number, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    started, found = time.perf_counter(), Counter[str]()
    while found.total() < number:
        command = [sys.executable, __file__, "--chunk", str(seed)]
        process = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True, env=env
        )
        *failures, counts = process.stdout.splitlines()
        found.update(json.loads(counts))
        seed += 4
        took = time.perf_counter() - started
        summary = f"{found.total():,} programs in {took:.0f} s, {dict(found)}"
        print(*failures, summary, sep="\n", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "--chunk":
        print(json.dumps(chunk(int(sys.argv[2]), CHUNK)))
    else:
        main()
