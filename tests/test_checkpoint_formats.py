"""Checkpoints of earlier versions are read, and those of later ones refused by name.

    python tests/test_checkpoint_formats.py DIRECTORY

has recorded `recorded/checkpoint-0.1.0`, run with version 0.1.0.
"""

import json
import shutil
import sys
from pathlib import Path

import functional_opt as fo
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec


RECORDED = Path(__file__).parent / "recorded" / "checkpoint-0.1.0"
STEP = 5
TX = optax.adam(1e-3, mu_dtype="bfloat16")


def make_params(factor):
    """Leaves of all kinds, one of them sharded over four devices."""
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("x", "y"))
    values = np.arange(24, dtype=np.float32).reshape(4, 6) * factor
    sharding = NamedSharding(mesh, PartitionSpec("x", "y"))
    return {
        "sharded": jax.device_put(values, sharding),
        "bfloat16": jnp.arange(5, dtype=jnp.bfloat16) * factor,
        "complex": jnp.arange(3) * (1 + 2j) * factor,
        "int4": jnp.arange(3).astype("int4") * factor,
        "empty": jnp.zeros((0, 3)),
        "key": jax.random.split(jax.random.key(factor), 2),
        "numpy": np.arange(3.0) * factor,
        "a/b": jnp.float32(-0.0) * factor,
        "width": 4,
    }


def make_state(params):
    state = TX.init({name: params[name] for name in ("sharded", "bfloat16")})
    return jax.tree.map(lambda x: x + 1, state), {"count": 3}


def test_a_checkpoint_of_0_1_0(tmp_path):
    params, blank = make_params(1), make_params(0)
    state = make_state(params)
    restored = fo.Checkpoints(RECORDED).restore(blank, make_state(blank))
    assert restored.step == STEP
    assert restored.params.pop("width") == params.pop("width")
    fo.testing.assert_equal(restored.params, params)
    fo.testing.assert_equal(restored.state, state)
    assert restored.params["sharded"].sharding == params["sharded"].sharding

    shutil.copytree(RECORDED, tmp_path / "run")
    checkpoints = fo.Checkpoints(tmp_path / "run")
    checkpoints.save(STEP, make_params(1), make_state(params))  # the same once more
    checkpoints.save(STEP + 1, make_params(1), make_state(params))
    assert checkpoints.steps == (STEP, STEP + 1)


@pytest.mark.parametrize("leaf", ["sharded", "bfloat16"])
def test_damage_to_a_checkpoint_of_0_1_0(tmp_path, leaf):
    shutil.copytree(RECORDED, tmp_path / "run")
    folder = tmp_path / "run" / str(STEP) / "default" / f"params['{leaf}']"
    file = next(path for path in (folder / "c").rglob("*") if path.is_file())
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)
    params = make_params(0)
    with pytest.raises(ValueError, match=rf"step 5 .* damaged: `params\['{leaf}'\]`"):
        fo.Checkpoints(tmp_path / "run").restore(params, make_state(params))


def test_a_checkpoint_of_a_later_version(tmp_path, monkeypatch):
    from rooms import storage

    checkpoints = fo.Checkpoints(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "FORMAT", 3)
        checkpoints.save(1, {"w": jnp.ones(2)}, ())
    with pytest.raises(ValueError, match=r"has format 3, and .* reads formats up to 2"):
        checkpoints.restore({"w": jnp.ones(2)}, ())


def test_the_format(tmp_path):
    """What other programs can rely on: Zarr arrays, listed in one JSON file."""
    fo.Checkpoints(tmp_path).save(1, {"w": jnp.arange(6.0).reshape(2, 3)}, {"n": 3})
    item = tmp_path / "1" / "default"
    manifest = json.loads((item / "leaves.json").read_text())
    assert (manifest["format"], manifest["step"]) == (2, 1)
    record = manifest["leaves"]["params['w']"]
    assert (record["dtype"], record["shape"]) == ("float32", [2, 3])
    assert set(record["files"]) == {"zarr.json", "c/0/0"}
    assert manifest["leaves"]["state['n']"] == {"value": 3}
    content = (item / record["folder"] / "c" / "0" / "0").read_bytes()
    assert content == np.arange(6, dtype="<f4").tobytes()


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 4)
    made = make_params(1)
    fo.Checkpoints(sys.argv[1]).save(STEP, made, make_state(made))
