"""What can be wrong with a checkpoint."""


class DamagedError(ValueError):
    """A checkpoint that is not as it was written."""


class DifferentError(ValueError):
    """A checkpoint of another model or optimizer."""
