"""Which descriptors of a restored tree lead out of it, and what stands in their place. Pure.

A terminal belongs to whoever sits at it, and the other end of a pipe to a stranger who is not restored: on the standard
streams they become /dev/null (or what --fd names), and so does a terminal at any other number, since a stranger's may have its name by now.
What else leads out elsewhere the plan refuses by name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ckpt.errors import UsageError
from ckpt.model import Descriptor, OpenFile, Snapshot, Task

STANDARD = range(3)
#: (path, identity, flags) -> the open file
Opener = Callable[[str, int, int], OpenFile]
#: (fd, identity, flags) -> ckpt's own standard stream as the open file
Passer = Callable[[int, int, int], OpenFile]


@dataclass(frozen=True, slots=True)
class Redirected:
    wanted: Snapshot
    warnings: tuple[str, ...]
    replaced: tuple[int, ...] = ()  #: ids of the open files that something else stands for


def redirect(
    wanted: Snapshot, chosen: Mapping[tuple[int, int], str], opener: Opener, passer: Passer | None = None, *, everywhere: bool = False
) -> Redirected:
    """`chosen`: (pid, or 0 for the root; fd) -> path. `passer`: standard streams that lead out become ours. `everywhere`: not the standard
    streams alone. The same open file stays one: whoever shares it shares what replaces it."""
    root = wanted.task(wanted.root.pid)
    files = {file.id: file for file in wanted.files}
    changed: dict[int, OpenFile] = {}
    warnings = []
    for (pid, fd), path in chosen.items():
        file = files[_held(wanted, pid, fd, path)]
        made = (
            os.O_CREAT if fd and file.flags & os.O_ACCMODE else 0
        )  # standard input is there to be read, though a terminal can be written to
        changed[file.id] = opener(path, file.id, file.flags | made)
    ours: dict[object, int] = {}  #: path of a terminal of then -> our standard stream that stands for it
    own = [(root, item) for item in root.descriptors if everywhere or item.fd in STANDARD]
    for task, item in (*own, *_terminals(wanted)):
        file, standard = files[item.file], task is root and item.fd in STANDARD
        if file.id in changed or not leads_out(file):
            continue
        stream = item.fd if standard or everywhere else ours.get(file.state["path"], -1)
        if passer is not None and stream >= 0:
            ours.setdefault(file.state.get("path"), stream)
            changed[file.id] = passer(stream, file.id, file.flags)
            continue
        changed[file.id] = opener("/dev/null", file.id, file.flags)
        choice = f"--fd {item.fd}=PATH" if task is root else f"--fd {task.pid}:{item.fd}=PATH"
        warnings.append(f"fd {item.fd} of task {task.pid} ({task.comm}): {_what(file)}: /dev/null stands in its place ({choice} chooses)")
    kept = (changed.get(file.id) or file for file in wanted.files)
    return Redirected(replace(wanted, files=tuple(_unwatched(file, changed) for file in kept)), tuple(warnings), tuple(changed))


def as_now(wanted: Snapshot, now: Snapshot) -> Snapshot:
    """For a tree that was restored since: what led out of it then was replaced; what stands at its place now stays."""
    here = {(task.pid, item.fd): item.file for task in now.tasks for item in task.descriptors}
    files = {file.id: file for file in now.files}
    there: dict[int, int] = {}
    for task in wanted.tasks:
        for item in task.descriptors:
            if (task.pid, item.fd) in here:
                there.setdefault(item.file, here[task.pid, item.fd])
    kept = (replace(files[there[file.id]], id=file.id) if leads_out(file) and file.id in there else file for file in wanted.files)
    return replace(wanted, files=tuple(kept))


def _held(wanted: Snapshot, pid: int, fd: int, path: str) -> int:
    """OpenFile.id of what is open there."""
    task = next((task for task in wanted.tasks if task.pid == (pid or wanted.root.pid)), None)
    found = next((item.file for item in task.descriptors if item.fd == fd), None) if task is not None else None
    if found is None:
        who = f"task {task.pid} ({task.comm}) has no descriptor {fd}" if task is not None else f"there is no task {pid}"
        raise UsageError(f"--fd {f'{pid}:' if pid else ''}{fd}={path}: {who} in this generation")
    return found


def _terminals(wanted: Snapshot) -> list[tuple[Task, Descriptor]]:
    found = {file.id for file in wanted.files if file.kind in ("device", "pty")}
    return [(task, item) for task in wanted.tasks for item in task.descriptors if item.file in found]


def leads_out(file: OpenFile) -> bool:
    return (file.kind == "device" and file.state.get("device") == "tty") or (file.kind != "fifo" and bool(file.state.get("outside")))


def _what(file: OpenFile) -> str:
    return f"terminal {file.state['path']}" if file.kind in ("device", "pty") else f"the other end of its {file.kind} is outside the tree"


def _unwatched(file: OpenFile, changed: Mapping[int, OpenFile]) -> OpenFile:
    """An epoll set cannot watch a file: entries of what became one are gone."""
    if file.kind != "epoll":
        return file
    lost = {identity for identity, made in changed.items() if not made.state["pollable"]}
    return replace(file, state={**file.state, "entries": [entry for entry in file.state["entries"] if entry["file"] not in lost]})
