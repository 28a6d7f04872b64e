"""Several CPU devices, types checked at every call, and how hard Hypothesis tries.

A program that several tests or processes compile is compiled once per run.
"""

import importlib.util
import os
import pkgutil
import tempfile

import hypothesis
import jax
import jaxtyping


DEVICES = "--xla_force_host_platform_device_count"

# JAX reads this once, when it makes its first array.
if DEVICES not in (flags := os.environ.get("XLA_FLAGS", "")):
    os.environ["XLA_FLAGS"] = f"{flags} {DEVICES}=8".strip()

# Most of the time of the tests is XLA's. The environment passes the cache on to the
# processes of the run: to those of pytest-xdist and to those that tests start.
CACHE = "JAX_COMPILATION_CACHE_DIR"
if CACHE not in os.environ:
    cache = tempfile.TemporaryDirectory(prefix="compiled")
    os.environ[CACHE] = cache.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
jax.config.update("jax_compilation_cache_dir", os.environ[CACHE])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

# The types of every call are checked where arrays are. Elsewhere small functions are
# called a million times, and pyright checks them.
WITHOUT_ARRAYS = {"_annotations", "_cli", "_codec", "_slicing"}
package = importlib.util.find_spec("functional_opt")
assert package is not None
rooms = {
    name for _, name, _ in pkgutil.iter_modules(package.submodule_search_locations)
}
checked = [f"functional_opt.{name}" for name in sorted(rooms - WITHOUT_ARRAYS)]
jaxtyping.install_import_hook([*checked, "lm"], "beartype.beartype")

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
