"""The living incarnation of a generation, ended so that a restore can take its place (--replace)."""

from __future__ import annotations

from ckpt.errors import CkptError
from ckpt.history.open import Generation
from ckpt.live import core, numbers, runtime
from ckpt.live.ending import kill
from ckpt.live.names import sockets_of
from ckpt.model import PidRef, Snapshot
from ckpt.plan.family import Family


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


def still_lives(generation: Generation) -> str:
    who = f"a living process ({generation.command}), the program of generation {generation.number} itself"
    return f"pid {generation.pid}: is taken by {who}: --replace ends it first, --new-pid or --pid-namespace restores beside it"


def sockets(ref: PidRef) -> set[int]:
    """Inodes of all sockets of the tree: their names are free once it has ended."""
    with core.Tree(ref.pid, ref.start_ticks) as tree:
        return sockets_of({thread.pid for thread in tree.threads()})


def refuse_strangers(ref: PidRef, wanted: Snapshot) -> None:
    """RefusedError names who has a number that will be wanted, where that is nobody of the tree: its own are free once it has ended."""
    with core.Tree(ref.pid, ref.start_ticks) as tree:
        own = {number for thread in tree.threads() for number in (thread.pid, thread.tid)}
    threads = {thread.tid for task in wanted.tasks for thread in task.threads}
    for number, holder in numbers.strangers({*threads, *(step.child for step in Family(wanted).steps() if step.child)}, own):
        raise numbers.refused(number, holder=holder)


def end(ref: PidRef) -> None:
    """SIGKILL to the whole tree (frozen, so that nobody is born meanwhile)."""
    with runtime.target_lock(ref), core.Tree(ref.pid, ref.start_ticks) as tree:
        tree.freeze()
        kill(tree)
    runtime.forget(ref)
