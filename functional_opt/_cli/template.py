"""Files to start from: every field with its default and its meaning."""

import functional_opt as fo

from .._codec.choices import reachable, root_choice
from .._codec.errors import ConfigError, suggestion
from .._codec.fields import summary_of
from .._names import name_of
from .entries import Entries, first_sentence
from .rendering import RENDERERS


def template(registry: fo.Registry, name: str, format: str) -> str:
    """A file that describes a class, with values without a default to be filled in."""
    kinds = registry.kinds
    known = {name_of(cls): cls for cls in reachable(kinds)} | dict(registry)
    if name not in known:
        text = f"no module is named {name!r}; {suggestion(name, known)}"
        raise ConfigError([("", text)])
    cls = known[name]
    entries = Entries(kinds).of_class(cls, root_choice(kinds, None))
    return RENDERERS[format](first_sentence(summary_of(cls)), entries)
