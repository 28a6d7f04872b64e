"""The names of classes in registries and in files."""


def name_of(kind: type) -> str:
    """What a class is called there."""
    return kind.__name__.lower()
