"""A generation in words and as JSON: the stable keys that `snapshot`, `log` and `show` print."""

from __future__ import annotations

import os
from collections.abc import Mapping as MappingABC
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ckpt.history.rows import file_summary
from ckpt.model import PAGE, Mapping, OpenFile, Snapshot, SyscallState, Task, Thread
from ckpt.syscalls import names

if TYPE_CHECKING:
    from ckpt.history.open import Generation, History

Row = dict[str, Any]


def generation_json(generation: Generation) -> Row:
    """Times: created_ns is CLOCK_REALTIME; stop_us and phases are microseconds, total_ms milliseconds."""
    return {
        "generation": generation.number,
        "parent": generation.parent,
        "lineage": generation.lineage,
        "incarnation": generation.incarnation,
        "command": generation.command,
        "pid": generation.pid,
        "kind": generation.kind,
        "tracker": generation.tracker,
        "created_ns": generation.created_ns,
        "stop_us": round(generation.stop_ns / 1e3, 1),
        "total_ms": round(generation.total_ns / 1e6, 3),
        "pages": dict(generation.pages),
        "bytes_stored": generation.bytes_stored,
        "phases": {name: round(ns / 1e3, 1) for name, ns in generation.phases.items()},
        "tags": list(generation.tags),
    }


def snapshot_json(snapshot: Snapshot) -> Row:
    """Everything but page contents; bytes as hex, xstate by its size."""
    return {
        "features": dict(snapshot.features),
        "processes": [
            {
                "pid": task.pid,
                "ppid": task.ppid,
                "pgid": task.pgid,
                "sid": task.sid,
                "start_ticks": task.start_ticks,
                "comm": task.comm,
                "space": task.mm,
                "attributes": dict(task.attributes),
                "pending": [blob.hex() for blob in task.pending],
                "exit_signal": task.exit_signal,
                "stopped": task.stopped,
                "shares": dict(task.shares),
            }
            for task in snapshot.tasks
        ],
        "zombies": _zombies(snapshot),
        "threads": [{**_thread(task, thread), **_thread_state(thread)} for task in snapshot.tasks for thread in task.threads],
        "descriptors": _descriptors(snapshot, with_state=True),
        "objects": [
            {"space": item.space, "dev": item.dev, "ino": item.ino, "size": item.size, "state": dict(item.state)}
            for item in snapshot.objects
        ],
    }


@dataclass(frozen=True, slots=True)
class Details:
    """Rows for people: what `show` prints."""

    processes: list[Row]
    threads: list[Row]
    mappings: list[Row]
    descriptors: list[Row]
    zombies: list[Row]


def details(history: History, generation: Generation, snapshot: Snapshot) -> Details:
    """The plain rows of the store where they know more (pages by mapping), the snapshot for the rest."""
    mappings = []
    told = {(task.pid, mapping.start): advice_text(mapping) for task in snapshot.tasks for mapping in task.mappings}
    for row in history.rows("mappings", generation.number):
        unsigned = {key: int(row[key]) & (1 << 64) - 1 for key in ("start", "end", "offset")}
        mappings.append(
            {
                **{key: value for key, value in row.items() if key != "generation"},
                **unsigned,
                "advice": told.get((row["pid"], unsigned["start"]), ""),
            }
        )
    known = {row["pid"]: row for row in history.rows("processes", generation.number)}
    processes = [
        {
            "pid": task.pid,
            "comm": task.comm,
            "stopped": task.stopped,
            "threads": len(task.threads),
            "mappings": len(task.mappings),
            "descriptors": len(task.descriptors),
            "pages": known[task.pid]["pages"] if task.pid in known else 0,
            "dirty": known[task.pid]["dirty"] if task.pid in known else 0,
        }
        for task in snapshot.tasks
    ]
    threads = [_thread(task, thread) for task in snapshot.tasks for thread in task.threads]
    return Details(processes, threads, mappings, _descriptors(snapshot, with_state=False), _zombies(snapshot))


def _zombies(snapshot: Snapshot) -> list[Row]:
    return [
        {
            "pid": dead.pid,
            "ppid": dead.ppid,
            "pgid": dead.pgid,
            "sid": dead.sid,
            "start_ticks": dead.start_ticks,
            "comm": dead.comm,
            "status": dead.status,
            "ended": f"killed by signal {dead.status & 0x7F}" if dead.status & 0x7F else f"exit {dead.status >> 8}",
            "exit_signal": dead.exit_signal,
            "uid": dead.uid,
        }
        for dead in snapshot.zombies
    ]


ADVICE = {
    "lo": "locked",
    "lf": "when touched",
    "dc": "not for children",
    "wf": "wiped in children",
    "dd": "not dumped",
    "hg": "huge pages",
    "nh": "no huge pages",
    "sr": "sequential",
    "rr": "random",
    "mg": "mergeable",
    "sl": "sealed",
    "dp": "droppable",
}  #: procfs/smaps.py; what only the kernel counts with is not shown


def advice_text(mapping: Mapping) -> str:
    """What a program has asked of a mapping, in words: "locked, not dumped, 2 guard pages"."""
    words = [ADVICE.get(word, f"protection key {word[2:]}") for word in mapping.advice or () if word not in ("ac", "mw")]
    guards = sum(end - start for start, end in mapping.guards) // PAGE
    return ", ".join([*words, *([f"{guards} guard page{'s'[: guards > 1]}"] if guards else [])])


# ---- threads ----


def call_text(syscall: SyscallState) -> str:
    """What a thread was doing: "user space", or its call by name."""
    return "user space" if syscall.phase == "user" or syscall.nr < 0 else names.name(syscall.nr)


def _thread(task: Task, thread: Thread) -> Row:
    return {
        "pid": task.pid,
        "tid": thread.tid,
        "phase": thread.syscall.phase,
        "syscall": thread.syscall.nr,
        "call": call_text(thread.syscall),
        "raw_retval": thread.syscall.raw_retval,
        "action": thread.decision.action.value,
        "value": thread.decision.value,
        "reason": thread.decision.reason,
        "disturbed": thread.decision.disturbed,
    }


def _thread_state(thread: Thread) -> Row:
    from ckpt.compare import registers

    return {
        "args": list(thread.syscall.args),
        "remaining_ns": thread.syscall.remaining_ns,
        "evidence": dict(thread.syscall.evidence),
        "registers": registers(thread.regs),
        "xstate_bytes": len(thread.xstate),
        "sigmask": thread.sigmask,
        "pending": [blob.hex() for blob in thread.pending],
        "attributes": dict(thread.attributes),
    }


# ---- descriptors ----

_FLAGS = ("APPEND", "NONBLOCK", "SYNC", "ASYNC", "DIRECT")


def flags_text(flags: int) -> str:
    """O_* in short: "rw nonblock"."""
    access = ("r", "w", "rw", "-")[flags & os.O_ACCMODE]
    names = [name.lower() for name in _FLAGS if (bit := getattr(os, f"O_{name}", 0)) and flags & bit == bit]
    return " ".join([access, *names])


def _descriptors(snapshot: Snapshot, *, with_state: bool) -> list[Row]:
    files: MappingABC[int, OpenFile] = {file.id: file for file in snapshot.files}
    holders: dict[int, list[tuple[int, int]]] = {}
    for task in snapshot.tasks:
        for item in task.descriptors:
            holders.setdefault(item.file, []).append((task.pid, item.fd))
    rows = []
    for task in snapshot.tasks:
        for item in task.descriptors:
            file = files[item.file]
            others = [f"{fd}" if pid == task.pid else f"{pid}:{fd}" for pid, fd in holders[item.file] if (pid, fd) != (task.pid, item.fd)]
            row: Row = {
                "pid": task.pid,
                "fd": item.fd,
                "cloexec": item.cloexec,
                "file": file.id,
                "kind": file.kind,
                "flags": file.flags,
                "flags_text": flags_text(file.flags) + (" cloexec" if item.cloexec else ""),
                "position": file.pos,
                "shared_with": " ".join(others[:3]) + (" ..." if len(others) > 3 else ""),
                "summary": file_summary(file),
            }
            rows.append(row | {"state": dict(file.state)} if with_state else row)
    return rows
