"""Errors that a user can meet: one line that says what, which resource, and what to do, and the documented exit code."""

from __future__ import annotations


class CkptError(Exception):
    """Failed. `str()` is the line that the command line prints."""

    exit_code = 1
    kind = "failed"


class UsageError(CkptError):
    exit_code = 2
    kind = "usage"


class RefusedError(CkptError):
    """The target cannot be checkpointed, rolled back or restored; the resource is named."""

    exit_code = 3
    kind = "refused"


class PermissionDeniedError(CkptError):
    exit_code = 4
    kind = "not permitted"


class DamagedError(CkptError):
    """The store is damaged, is not a store, or is of a newer format."""

    exit_code = 5
    kind = "store"


class NotFoundError(CkptError):
    """No such process or generation, or the name fits several."""

    exit_code = 6
    kind = "not found"
