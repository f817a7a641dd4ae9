"""Faults for a ckpt that is run as a child: which rule, and what the counters say afterwards. Grammar: inject.c."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Mapping
from pathlib import Path

from tests.making import make

HERE = Path(__file__).resolve().parent
LIBRARY = HERE / "bin" / "inject.so"
SLOT = struct.Struct("48sQQ")
SLOTS = 512

#: The named points of the flow: ckpt_mark(name). The phase lasts until the next mark.
#: Who adds a mark adds it here; who tests a kill picks from here.
PHASES = {
    "preflight": "the target was looked at, nothing of it is changed",
    "arm": "a process is stopped to get its userfaultfd, nothing of it is changed",
    "inject": "inside an injection: the thread's registers point at the stub",
    "injected": "after the injection: the thread has its own registers back",
    "batch": "a batch of remote calls is loaded, the thread is about to run it",
    "batch-done": "the batch ran, the thread is not yet itself again",
    "armed": "the userfaultfd stands, no generation knows it",
    "consumed": "the record says consumed, the scan that consumes is next",
    "precopied": "dirty pages were consumed and streamed to the store while the target ran",
    "prepared": "the freeze is next",
    "frozen": "every thread of the tree is stopped",
    "raw": "registers and texts are taken, the tree is still stopped",
    "sending": "in a process of its own: a socket is in repair mode",
    "questions": "the tasks' own answers are taken",
    "copied": "the pages are copied, the threads are about to be let go",
    "thawed": "the tree runs on",
    "kept": "in the keeper: a thread is stopped at its deadline, the end of its wait is not written yet",
    "captured": "the tree runs on, everything is in ckpt's memory alone",
    "parsed": "the raw bytes are understood",
    "stored": "page frames are in the store as orphans, no generation names them",
    "published": "the generation is in the store, the record does not say so yet",
    "recorded": "the record says which generation is the baseline",
    # a rollback
    "opened": "tree and store are open, nothing of the target is changed",
    "planned": "the plan is made from the layout of the running tree",
    "prefetched": "the generation's pages are in memory, the freeze is next",
    "ready": "the freeze of a rollback is next",
    "replanned": "the plan fits the frozen tree",
    "journaled": "the journal says changing, nothing is changed yet",
    "stopping": "the tree is about to be stopped so that it stays so if ckpt dies",
    "stopped": "the tree is stopped for good if ckpt dies now; the first change is next",
    "task-ended": "a process that had come since has ended, its parent has not collected it yet",
    "task-made": "a process that had gone since is there again, an empty copy; it dies with ckpt",
    "task-kept": "that process is stopped for good, it does not die with ckpt",
    "operated": "the tree has its wanted processes, some of them empty",
    "threads-ended": "threads that had come since are gone",
    "threads-made": "threads that had gone since are there again, with nothing of their own yet",
    "registers-set": "a thread has its registers, mask and signals back",
    "layout": "threads, mappings and descriptors are back, pages are not",
    "scanned": "the pages that were written since are known",
    "sorted": "it is known which pages to write, drop and zero",
    "written": "the pages of a memory that the generation holds are back",
    "dropped": "the pages of a memory are back, those that it did not have are gone",
    "protected": "the tracker counts anew from here",
    "pages": "all pages are back",
    "registers": "registers, masks and signals are back",
    "continued": "the journal is done, the threads are about to be let go",
    # a restore
    "replaced": "the living incarnation was ended, its number is free",
    "born": "an empty process with the wanted number stands, seized; it dies with ckpt",
    "looked": "the newborn's layout is known",
    "ended": "the newborn is what the generation says, the bridge is gone, nobody is let go yet",
    "compared": "a verified newborn was compared with its generation, its end is next",
    "released": "the restored program runs, nothing of it depends on ckpt",
}


def build() -> Path:
    make(HERE)
    return LIBRARY


class Faults:
    """One fault plan with its counters; `env()` is what the child must be started with."""

    def __init__(self, folder: Path, *rules: str) -> None:
        build()
        self.rules = rules
        self.file = folder / f"counters-{os.urandom(4).hex()}"
        self.file.write_bytes(bytes(SLOT.size * SLOTS))

    def env(self) -> dict[str, str]:
        old = os.environ.get("LD_PRELOAD", "")
        return {
            "LD_PRELOAD": f"{LIBRARY}:{old}" if old else str(LIBRARY),
            "CKPT_FAULT": ";".join(self.rules),
            "CKPT_FAULT_COUNTERS": str(self.file),
        }

    def _slots(self) -> Mapping[str, tuple[int, int]]:
        found = {}
        for name, hits, fired in SLOT.iter_unpack(self.file.read_bytes()):
            if name[0]:
                found[name.split(b"\0")[0].decode()] = (hits, fired)
        return found

    def hits(self) -> dict[str, int]:
        """Passages: "PHASE" for a mark, "PHASE/sys_x" for a call of the seam in that phase."""
        return {name: hits for name, (hits, _) in self._slots().items() if hits}

    def fired(self) -> dict[str, int]:
        """Rules that were set off, by their text (the first 47 characters)."""
        return {name: fired for name, (_, fired) in self._slots().items() if fired}


def kill_at(phase: str, number: int = 1) -> str:
    return f"{phase}#{number}=kill"


def kill_in(phase: str, call: int) -> str:
    """At the call-th system call on the target after the mark `phase`."""
    return f"*@{phase}#{call}=kill"


def fail_at(phase: str, error: int = errno.EIO) -> str:
    return f"{phase}=fail:{error}"
