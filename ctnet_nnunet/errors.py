"""What can go wrong through no fault of ours, each with what, where and the remedy.

Every message is one line for the person at the terminal: *what* is wrong, *where* (file, key, case),
and the *remedy*. The command line and the trainers print that line and exit with status 2; a traceback
is left for our own mistakes.
"""

from __future__ import annotations


class CTNetError(Exception):
    """A user-facing failure; ``str(error)`` is the line to print."""

    exit_status = 2


class SetupError(CTNetError):
    """The installation or the environment is not what nnU-Net or this package needs."""


class PlanError(CTNetError):
    """A plans file, a configuration or a ``ctnet`` option is missing, unknown or ill-typed."""


class DataError(CTNetError):
    """A dataset folder, an image, a label map or a split cannot be used."""


class CheckpointError(CTNetError):
    """A checkpoint is missing, unreadable, from other plans, or could not be written."""


class TrainingError(CTNetError):
    """A running training cannot go on (for example, the loss stays non-finite)."""
