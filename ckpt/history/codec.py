"""A Snapshot as bytes: zlib over JSON, with the version of its shape inside.

    zlib({"version": 2, "snapshot": {...}})        so that `zlib-flate -uncompress | jq` reads it without us

1. A version is frozen once a release has written it: a new field means a new version and a new pair of functions here;
   the old `_read_N` stays. A version above `VERSION` is refused by name, never guessed at.
2. Bytes are base64. xstate and siginfo, which are mostly zeros and mostly equal among threads, stand once in `blobs` and are
   named by their place there: 200 threads of 2.7 KB cost a few kilobytes, and zlib has little left to chew.
3. Mappings, descriptors and the backing of mappings are rows, not objects: a process has hundreds of them, and this
   code runs within the 60 ms that an incremental snapshot may take. What many of them share is made once when they are read.
4. What a kind remembers (State) is JSON already and passes through untouched.
"""

from __future__ import annotations

import json
import zlib
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from ckpt.errors import DamagedError
from ckpt.model import (
    SIGCHLD,
    Action,
    Backing,
    Descriptor,
    Mapping,
    OpenFile,
    PidRef,
    RetvalDecision,
    SharedObject,
    Snapshot,
    SyscallState,
    Task,
    Thread,
    Zombie,
)

VERSION = 2
_LEVEL = 1  #: zlib's fastest: the text is repetitive, higher levels cost 3x the time for a tenth of the size


def encode(snapshot: Snapshot) -> bytes:
    """The snapshot as it stands in the store (Generation.snapshot)."""
    document = {"version": VERSION, "snapshot": _write_2(snapshot)}
    text = json.dumps(document, separators=(",", ":"), check_circular=False)
    return zlib.compress(text.encode("ascii"), _LEVEL)


def decode(data: bytes) -> Snapshot:
    """The snapshot that `encode` was given. Raises DamagedError for bytes that are none, and for a newer version."""
    try:
        document = json.loads(zlib.decompress(data))
        version = document["version"]
        body = document["snapshot"]
    except (zlib.error, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"the snapshot of this generation cannot be read ({error}): run ckpt fsck --full") from error
    if not isinstance(version, int) or version > VERSION:
        raise DamagedError(f"the snapshot is of version {version}, this ckpt reads up to {VERSION}: use a newer ckpt")
    reader = _READERS.get(version)
    if reader is None:
        raise DamagedError(f"the snapshot is of version {version}, which never was: run ckpt fsck --full")
    try:
        return reader(body)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise DamagedError(f"the snapshot of this generation does not fit version {version} ({error}): run ckpt fsck --full") from error


# ---- version 2, and version 1: it knows nothing of advice and guard pages, of an object's state, of what binds processes ----


class _Blobs:
    """Writes each different byte string once."""

    def __init__(self) -> None:
        self._places: dict[bytes, int] = {}

    def place(self, blob: bytes) -> int:
        return self._places.setdefault(blob, len(self._places))

    def texts(self) -> list[str]:
        return [_text(blob) for blob in self._places]


def _text(blob: bytes) -> str:
    return b2a_base64(blob, newline=False).decode("ascii")


def _write_2(snapshot: Snapshot) -> dict[str, Any]:
    blobs = _Blobs()
    tasks = [_write_task(task, blobs) for task in snapshot.tasks]
    return {
        "root": [snapshot.root.pid, snapshot.root.start_ticks],
        "taken_at": snapshot.taken_at,
        "features": dict(snapshot.features),
        "tasks": tasks,
        "files": [[file.id, file.kind, file.flags, file.pos, dict(file.state)] for file in snapshot.files],
        "objects": [[item.space, item.dev, item.ino, item.size, dict(item.state)] for item in snapshot.objects],
        "blobs": blobs.texts(),
        "zombies": [
            [dead.pid, dead.start_ticks, dead.ppid, dead.pgid, dead.sid, dead.comm, dead.status, dead.exit_signal, dead.uid]
            for dead in snapshot.zombies
        ],
    }


def _write_task(task: Task, blobs: _Blobs) -> dict[str, Any]:
    return {
        "pid": task.pid,
        "start_ticks": task.start_ticks,
        "ppid": task.ppid,
        "pgid": task.pgid,
        "sid": task.sid,
        "comm": task.comm,
        "mm": task.mm,
        "threads": [_write_thread(thread, blobs) for thread in task.threads],
        "mappings": [_write_mapping(mapping) for mapping in task.mappings],
        "descriptors": [[item.fd, int(item.cloexec), item.file] for item in task.descriptors],
        "pending": [blobs.place(blob) for blob in task.pending],
        "attributes": dict(task.attributes),
        "exit_signal": task.exit_signal,
        "stopped": task.stopped,
        "shares": dict(task.shares),
    }


def _write_thread(thread: Thread, blobs: _Blobs) -> dict[str, Any]:
    call, decision = thread.syscall, thread.decision
    return {
        "tid": thread.tid,
        "start_ticks": thread.start_ticks,
        "regs": _text(thread.regs),
        "xstate": blobs.place(thread.xstate),
        "sigmask": thread.sigmask,
        "pending": [blobs.place(blob) for blob in thread.pending],
        "syscall": [call.phase, call.nr, list(call.args), call.raw_retval, call.remaining_ns, dict(call.evidence)],
        "decision": [decision.action.value, decision.value, decision.reason, int(decision.disturbed)],
        "attributes": dict(thread.attributes),
    }


def _write_mapping(mapping: Mapping) -> list[Any]:
    b = mapping.backing
    advice = None if mapping.advice is None else " ".join(mapping.advice)
    row: list[Any] = [mapping.start, mapping.end, mapping.prot, mapping.flags, mapping.name, b.kind, advice, mapping.guards]
    if b != Backing(b.kind):
        row += [b.path, b.dev, b.ino, b.offset, b.size, b.mtime_ns, int(b.deleted)]
    return row


def _read_1(body: dict[str, Any]) -> Snapshot:
    return _read(body, _read_mapping_1)


def _read_2(body: dict[str, Any]) -> Snapshot:
    return _read(body, _read_mapping_2)


def _read(body: dict[str, Any], mapping: Callable[[Sequence[Any]], Mapping]) -> Snapshot:
    blobs = [a2b_base64(text) for text in body["blobs"]]
    return Snapshot(
        root=PidRef(*body["root"]),
        tasks=tuple(_read_task(task, blobs, mapping) for task in body["tasks"]),
        files=tuple(OpenFile(*row) for row in body["files"]),
        objects=tuple(SharedObject(*row) for row in body["objects"]),
        features=body["features"],
        taken_at=body["taken_at"],
        zombies=tuple(Zombie(*row) for row in body.get("zombies", ())),
    )


def _read_task(task: dict[str, Any], blobs: Sequence[bytes], mapping: Callable[[Sequence[Any]], Mapping]) -> Task:
    return Task(
        pid=task["pid"],
        start_ticks=task["start_ticks"],
        ppid=task["ppid"],
        pgid=task["pgid"],
        sid=task["sid"],
        comm=task["comm"],
        mm=task["mm"],
        threads=tuple(_read_thread(thread, blobs) for thread in task["threads"]),
        mappings=tuple(mapping(row) for row in task["mappings"]),
        descriptors=tuple(Descriptor(fd, bool(cloexec), file) for fd, cloexec, file in task["descriptors"]),
        pending=tuple(blobs[place] for place in task["pending"]),
        attributes=task["attributes"],
        exit_signal=task.get("exit_signal", SIGCHLD),
        stopped=task.get("stopped", 0),
        shares=task.get("shares", {}),
    )


@lru_cache(64)
def _decision(action: str, value: int, reason: str, disturbed: int) -> RetvalDecision:
    return RetvalDecision(Action(action), value, reason, bool(disturbed))


@lru_cache(64)
def _bare(kind: str) -> Backing:
    return Backing(kind)


@lru_cache(64)
def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _read_thread(thread: dict[str, Any], blobs: Sequence[bytes]) -> Thread:
    phase, nr, args, raw_retval, remaining_ns, evidence = thread["syscall"]
    return Thread(
        tid=thread["tid"],
        start_ticks=thread["start_ticks"],
        regs=a2b_base64(thread["regs"]),
        xstate=blobs[thread["xstate"]],
        sigmask=thread["sigmask"],
        pending=tuple(blobs[place] for place in thread["pending"]),
        syscall=SyscallState(phase, nr, tuple(args), raw_retval, remaining_ns, evidence),
        decision=_decision(*thread["decision"]),
        attributes=thread["attributes"],
    )


def _read_mapping_1(row: Sequence[Any]) -> Mapping:
    return _read_mapping_2([*row[:6], None, (), *row[6:]])


def _read_mapping_2(row: Sequence[Any]) -> Mapping:
    start, end, prot, flags, name, kind, words, guards, *rest = row
    if rest:
        path, dev, ino, offset, size, mtime_ns, deleted = rest
        backing = Backing(kind, path, dev, ino, offset, size, mtime_ns, bool(deleted))
    else:
        backing = _bare(kind)
    advice = None if words is None else _words(words)
    return Mapping(start, end, prot, flags, backing, name, advice, tuple([(low, high) for low, high in guards]) if guards else ())


_READERS: dict[int, Callable[[dict[str, Any]], Snapshot]] = {1: _read_1, 2: _read_2}
