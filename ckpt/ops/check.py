"""ckpt check: the pre-flight alone, with everything that it finds."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from ckpt.kinds.base import RawDescriptor
from ckpt.live import core, cut_transfers, preflight, runtime, terminal_reads
from ckpt.ops.settle import settle


@dataclass(frozen=True, slots=True)
class Found:
    pid: int
    command: str
    processes: int
    threads: int
    descriptors: int
    refusals: tuple[str, ...]
    warnings: tuple[str, ...]

    def json(self) -> dict[str, Any]:
        return {
            "pid": self.pid,
            "command": self.command,
            "ok": not self.refusals,
            "processes": self.processes,
            "threads": self.threads,
            "descriptors": self.descriptors,
            "refusals": list(self.refusals),
            "warnings": list(self.warnings),
        }


def check(pid: int) -> Found:
    """Looks from outside; the tree is not stopped. Raises NotFoundError (6), PermissionDeniedError (4).

    A rollback that a killed ckpt left in the middle is finished first.
    """
    settle(pid)
    with core.Tree(pid, runtime.start_ticks(pid)) as tree:
        seen: list[RawDescriptor] = []
        problems = list(preflight.examine(tree, seen))
        problems += terminal_reads.examine(tree, seen)
        problems += cut_transfers.examine(tree, seen)
        threads = tree.threads()
    pids = {thread.pid for thread in threads}
    return Found(
        pid=pid,
        command=preflight.command_name(pid),
        processes=len(pids),
        threads=len(threads),
        descriptors=sum(_descriptors(one) for one in pids),
        refusals=tuple(problem.text for problem in problems if problem.refuses),
        warnings=tuple(problem.text for problem in problems if not problem.refuses),
    )


def _descriptors(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0
