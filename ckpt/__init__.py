"""git for living Linux processes. A program that wants its own checkpoint calls `ckpt.checkpoint_self()`."""

from __future__ import annotations


def checkpoint_self() -> int:
    """See ckpt/myself.py: the generation's number here, 0 where a restore or a rollback goes on from, a negative errno on failure."""
    from ckpt import myself

    return myself.checkpoint_self()
