"""The names of classes in registries and in files."""


def name_of(kind: type) -> str:
    """The name of a class in registries and files."""
    return kind.__name__.lower()
