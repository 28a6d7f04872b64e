import jax.numpy as jnp
from jaxtyping import Array


A, B, C = 3.4445, -4.7750, 2.0315


def orthogonalize(x: Array, steps: int) -> Array:
    """Brings the singular values of the matrices in the last two axes close to 1.

    The quintic iteration of [Muon](https://kellerjordan.github.io/posts/muon/).
    """
    is_tall = x.shape[-2] > x.shape[-1]
    x = x.mT if is_tall else x
    x = x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = A * x + (B * gram + C * gram @ gram) @ x
    return x.mT if is_tall else x
