"""All errors that a user may see. Each is one message that says what to do, and knows its exit code.

Jobs tell these errors without a traceback; any other exception is a fault of clipray and keeps its traceback.
"""


class ClipRayError(Exception):
    """Base of the errors that a user may see."""

    exit_code = 1


class ConfigError(ClipRayError, ValueError):
    """A config or an input that cannot be used; the message says where and what to change."""

    exit_code = 2


class ClusterError(ClipRayError, RuntimeError):
    """Ray cannot be started or joined, has not what was asked for, or lost its workers too often."""


class StoreError(ClipRayError, OSError):
    """The workspace cannot be read or written: full, read-only, forbidden, gone."""


class DamagedError(StoreError):
    """One artefact of the workspace is not whole; the others may be."""


class ErrorBudget(ClipRayError, RuntimeError):
    """More images or datasets failed than the config allows."""

    exit_code = 3


class TrackingError(ClipRayError, RuntimeError):
    """MLflow cannot be reached or refuses what it is given."""

    exit_code = 4


class Worse(ClipRayError, RuntimeError):
    """A method got worse than in the last successful campaign, and the config asks to fail then."""

    exit_code = 5
