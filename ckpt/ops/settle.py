"""What snapshot and check do first: control groups that a killed ckpt left frozen are thawed, and a rollback that it left in the middle is
finished.

In a file of its own because nearly always there is none: then nothing of the rollback's code needs to be loaded.
"""

from __future__ import annotations

from ckpt.errors import NotFoundError
from ckpt.live import freezer, journal, runtime
from ckpt.model import PidRef


def settle(pid: int) -> None:
    freezer.mend()
    try:
        ref = PidRef(pid, runtime.start_ticks(pid))
    except NotFoundError:
        return
    unfinished = journal.load(ref)
    if unfinished is not None:
        from ckpt.ops.rollback import finish

        finish(pid, unfinished)


def after_a_death() -> None:
    """Whoever was at work has just died."""
    freezer.mend()
