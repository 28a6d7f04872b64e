"""Packs values of several dtypes into one vector of 32-bit words, bit for bit."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32


_WORD = 4  # bytes


@dataclass(frozen=True)
class Packing:
    """Packs arrays of these shapes and dtypes into one vector of 32-bit words.

    Arrays of the same dtype are adjacent, so that only the last word of each dtype is
    padded. Shapes `f32[]`, `bf16[3]`, `f32[2]` take three words of `float32`, then two
    of `bfloat16`, of which the last is half padding.
    """

    shapes: tuple[jax.ShapeDtypeStruct, ...]

    @property
    def _groups(self) -> dict[jnp.dtype, list[int]]:
        groups: dict[jnp.dtype, list[int]] = {}
        for i, shape in enumerate(self.shapes):
            groups.setdefault(shape.dtype, []).append(i)
        return groups

    @property
    def num_words(self) -> int:
        """The number of words of the packed vector."""
        return sum(
            _num_words(sum(self.shapes[i].size for i in members), dtype)
            for dtype, members in self._groups.items()
        )

    @property
    def nbytes(self) -> int:
        """The size of the packed vector in bytes."""
        return _WORD * self.num_words

    def pack(
        self, values: Sequence[Array], num_words: int | None = None
    ) -> UInt32[Array, " words"]:
        """The packed vector, padded with zeros to `num_words`."""
        words = [
            _to_words(jnp.concatenate([jnp.ravel(values[i]) for i in members]))
            for members in self._groups.values()
        ]
        padding = max(0, (num_words or 0) - self.num_words)
        return jnp.concatenate([*words, jnp.zeros((padding,), jnp.uint32)])

    def unpack(self, words: UInt32[Array, " words"], first: int = 0) -> list[Array]:
        """The values of the packed vector that starts at a word.

        Every value is a slice of all words, of one `bitcast_convert_type` per dtype:
        XLA then reads it where it is used. With a slice per vector, it would compile a
        kernel for each of them.
        """
        values: dict[int, Array] = {}
        for dtype, members in self._groups.items():
            count = sum(self.shapes[i].size for i in members)
            length = _num_words(count, dtype)
            if _carrier(dtype) == dtype and dtype.itemsize == _WORD:
                elements, start = jax.lax.bitcast_convert_type(words, dtype), first
            else:
                own = words[first : first + length]
                elements, start = _from_words(own, count, dtype), 0
            for i in members:
                end = start + self.shapes[i].size
                values[i] = elements[start:end].reshape(self.shapes[i].shape)
                start = end
            first += length
        return [values[i] for i in range(len(self.shapes))]


def _num_words(count: int, dtype: jnp.dtype) -> int:
    return -(-count * _carrier(dtype).itemsize // _WORD)


def _carrier(dtype: jnp.dtype) -> jnp.dtype:
    """A dtype of whole bytes that holds all values of a sub-byte dtype or of bool."""
    if dtype == jnp.bool_:
        return jnp.dtype(jnp.uint8)
    if jnp.issubdtype(dtype, jnp.integer) and jnp.iinfo(dtype).bits < 8:
        signed = jnp.issubdtype(dtype, jnp.signedinteger)
        return jnp.dtype(jnp.int8 if signed else jnp.uint8)
    if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 8:
        return jnp.dtype(jnp.bfloat16)
    return dtype


def _to_words(elements: Array) -> UInt32[Array, " words"]:
    """The bytes of a vector, padded with zeros to whole words."""
    elements = elements.astype(_carrier(elements.dtype))
    if jnp.issubdtype(elements.dtype, jnp.complexfloating):
        elements = jnp.stack([elements.real, elements.imag], axis=-1).ravel()
    itemsize = elements.dtype.itemsize
    if itemsize >= _WORD:
        return jax.lax.bitcast_convert_type(elements, jnp.uint32).ravel()
    padded = jnp.pad(elements, (0, -elements.size % (_WORD // itemsize)))
    return jax.lax.bitcast_convert_type(
        padded.reshape(-1, _WORD // itemsize), jnp.uint32
    )


def _from_words(words: UInt32[Array, " words"], count: int, dtype: jnp.dtype) -> Array:
    if (carrier := _carrier(dtype)) != dtype:
        return _from_words(words, count, carrier).astype(dtype)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        part = jnp.dtype(f"float{dtype.itemsize * 4}")
        parts = _from_words(words, 2 * count, part).reshape(-1, 2)
        return jax.lax.complex(parts[:, 0], parts[:, 1])
    if dtype.itemsize > _WORD:
        words = words.reshape(-1, dtype.itemsize // _WORD)
    return jax.lax.bitcast_convert_type(words, dtype).ravel()[:count]
