"""Errors for checkpoints that do not match or cannot be read."""


class DamagedError(ValueError):
    """A checkpoint with files that differ from the written ones."""


class DifferentError(ValueError):
    """A checkpoint of another model or optimizer."""
