"""Several CPU devices for stages to live on, and how hard Hypothesis tries."""

import os

import hypothesis
import jax


DEVICES = "--xla_force_host_platform_device_count"

# JAX reads this once, when it makes its first array.
if DEVICES not in (flags := os.environ.get("XLA_FLAGS", "")):
    os.environ["XLA_FLAGS"] = f"{flags} {DEVICES}=8".strip()

# A vector that meets a matrix by mistake is an error. Code of others that broadcasts
# so is named where it is used, with `jax.numpy_rank_promotion("allow")`.
jax.config.update("jax_numpy_rank_promotion", "raise")

# The same examples every time: whether a commit passes is up to the commit. Chance
# has its place in the thorough profile.
hypothesis.settings.register_profile(
    "ci", deadline=None, max_examples=30, derandomize=True, print_blob=True
)
hypothesis.settings.register_profile(
    "thorough", deadline=None, max_examples=2000, print_blob=True
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
