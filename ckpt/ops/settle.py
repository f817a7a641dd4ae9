"""What snapshot and check do first: a rollback that a killed ckpt left in the middle is finished.

In a file of its own because nearly always there is none: then nothing of the rollback's code needs to be loaded.
"""

from __future__ import annotations

from ckpt.errors import NotFoundError
from ckpt.live import journal, runtime
from ckpt.model import PidRef


def settle(pid: int) -> None:
    try:
        ref = PidRef(pid, runtime.start_ticks(pid))
    except NotFoundError:
        return
    unfinished = journal.load(ref)
    if unfinished is not None:
        from ckpt.ops.rollback import finish

        finish(pid, unfinished)
