"""Any mixture of dtypes survives the way through one vector of words, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, strategies as st
from rooms import Packing


DTYPES = ["bool", "uint8", "int8", "int16", "bfloat16", "float16", "int32", "float32"]
DTYPES += ["uint32", "complex64"]


@st.composite
def arrays(draw):
    dtype = np.dtype(jnp.dtype(draw(st.sampled_from(DTYPES))))
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=2)))
    count = int(np.prod(shape)) * dtype.itemsize
    raw = np.frombuffer(draw(st.binary(min_size=count, max_size=count)), np.uint8)
    raw = raw % 2 if dtype == np.bool_ else raw
    return raw.view(dtype).reshape(shape)


@given(st.lists(arrays(), max_size=6))
def test_every_bit_survives(values):
    packing = Packing(
        tuple(jax.ShapeDtypeStruct(value.shape, value.dtype) for value in values)
    )
    words = packing.pack([jnp.asarray(value) for value in values])
    assert words.dtype == jnp.uint32 and words.nbytes == packing.nbytes
    among_others = jnp.asarray(np.pad(words, 1, constant_values=7))
    for found, expected in zip(packing.unpack(among_others, 1), values, strict=True):
        assert found.dtype == expected.dtype and found.shape == expected.shape
        assert np.asarray(found).tobytes() == expected.tobytes()


def test_narrow_values_share_words():
    shapes = [jax.ShapeDtypeStruct((), dtype) for dtype in ("bool", "float16", "bool")]
    assert Packing(tuple(shapes)).nbytes == 8


def test_values_of_64_bits():
    with jax.enable_x64(True):
        values = [jnp.array([np.pi, -0.0]), jnp.array(2**40 + 1), jnp.array(1 + 2j)]
        packing = Packing(tuple(jax.ShapeDtypeStruct(v.shape, v.dtype) for v in values))
        for found, expected in zip(
            packing.unpack(packing.pack(values)), values, strict=True
        ):
            assert found.dtype == expected.dtype
            assert np.asarray(found).tobytes() == np.asarray(expected).tobytes()
