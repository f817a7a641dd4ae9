"""The living incarnation of a generation, ended so that a restore can take its place (--replace)."""

from __future__ import annotations

from ckpt.errors import CkptError
from ckpt.history.open import Generation
from ckpt.live import core, runtime
from ckpt.live.ending import kill
from ckpt.live.names import sockets_of
from ckpt.model import PidRef, Snapshot


def living(generation: Generation, wanted: Snapshot) -> PidRef | None:
    """The process that has the generation's number, if it is of the same history: the one that was captured, or one that an
    earlier restore made of it. None: nobody has the number, or somebody else."""
    pid = wanted.root.pid
    try:
        ref = PidRef(pid, runtime.start_ticks(pid))
        if not runtime.lives(pid, ref.start_ticks):
            return None
        record = runtime.load(ref)
        if runtime.same_process(runtime.incarnation(ref), generation.incarnation) or (record and record.lineage == generation.lineage):
            return ref
    except (CkptError, OSError):
        return None
    return None


def sockets(ref: PidRef) -> set[int]:
    """Inodes of all sockets of the tree: their names are free once it has ended."""
    with core.Tree(ref.pid, ref.start_ticks) as tree:
        return sockets_of({thread.pid for thread in tree.threads()})


def end(ref: PidRef) -> None:
    """SIGKILL to the whole tree (frozen, so that nobody is born meanwhile)."""
    with runtime.target_lock(ref), core.Tree(ref.pid, ref.start_ticks) as tree:
        tree.freeze()
        kill(tree)
    runtime.forget(ref)
