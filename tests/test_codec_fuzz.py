"""Documents that are nearly right: refused with `ConfigError`, as the schema does."""

import os
import re
import subprocess
import sys
from pathlib import Path

import functional_opt as fo
import jsonschema
import pytest
from mutations import Mutations
from rooms import library


# What texts have that are about the shape of a document, not about its values.
OF_SHAPE = re.compile(
    r"^(expected |unknown key of |required |this key can only |the name of )"
    r"|^no \w+ is named |^`\w+` is a key of | (is|are) .*(`, of| is expected here)"
)


def test_only_config_errors_come_out():
    """In a process of its own, where nothing checks the types of every call."""
    script = Path(__file__).with_name("fuzz_codec.py")
    done = subprocess.run(
        [sys.executable, script, "4000", "1"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    assert done.stdout.splitlines()[-1].startswith("4,000 documents")


# Python's `re` may find a drawn pattern odd; users see that as a warning too.
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_schema_and_decoder_agree():
    registry = library()
    schema = jsonschema.Draft202012Validator(registry.json_schema())
    mutations = Mutations(registry, seed=2)
    agreed = {True: 0, False: 0}
    for _ in range(500):
        data = mutations.plain(is_json=True)
        problems = problems_of(registry, data)
        is_valid = schema.is_valid(data)
        agreed[is_valid] += 1
        if is_valid:
            assert not any(OF_SHAPE.search(text) for _, text in problems), problems
        else:
            assert problems, data
    assert min(agreed.values()) > 90


def problems_of(registry, data):
    try:
        registry.decode(data)
    except fo.ConfigError as error:
        return error.problems
    return ()
