"""The ways in which a checkpoint does not fit or cannot be read."""


class DamagedError(ValueError):
    """A checkpoint that differs from what was written."""


class DifferentError(ValueError):
    """A checkpoint of another model or optimizer."""
