"""What a rollback is about to do to a target, written before it does it.

Between its first change and its last register a rollback leaves the target in no state that it could run from. So:

 1. the journal is written and every task is sent SIGSTOP before the first change;
 2. from the first injected call on the group stop is in force, and the kernel keeps every thread that loses its tracer
    stopped (kernel/ptrace.c, __ptrace_unlink: a thread of a stopped group is told to stop again before it runs);
 3. whoever comes next reads the journal and rolls back to the same generation again, from whatever is there: the plan is made
    anew, every page is written, every register set. That finishes it;
 4. the journal goes after the last register is set and before SIGCONT takes the stop away. A death in between leaves the
    new state, stopped; `fg`, SIGCONT or the next rollback lets it run.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from ckpt.live.runtime import folder
from ckpt.model import PidRef


@dataclass(frozen=True, slots=True)
class Journal:
    store: str  #: path of the store
    generation: int
    tcp: str
    phase: str  #: "changing": stopped by us, to be finished; "done": only the stop is left to be taken away
    stopped: tuple[int, ...] = ()  #: tasks that somebody else had stopped before


def _path(ref: PidRef) -> Path:
    return folder() / f"{ref.pid}-{ref.start_ticks}.journal"


def load(ref: PidRef) -> Journal | None:
    try:
        raw = json.loads(_path(ref).read_text())
        return Journal(**{**raw, "stopped": tuple(raw.get("stopped", ()))})
    except (OSError, ValueError, TypeError):
        return None


def save(ref: PidRef, journal: Journal) -> None:
    path = _path(ref)
    fresh = path.with_suffix(f".{os.getpid()}.new")
    fresh.write_text(json.dumps(asdict(journal)))
    fresh.chmod(0o600)
    fresh.replace(path)


def clear(ref: PidRef) -> None:
    _path(ref).unlink(missing_ok=True)
