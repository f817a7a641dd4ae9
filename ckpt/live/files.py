"""What the machine has, or ckpt makes, for open files of a restored tree that remote calls alone cannot make again."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ckpt.errors import RefusedError
from ckpt.kinds.fd import multicast
from ckpt.live import fifos, processes, queues, watches
from ckpt.live.terminals import Terminal
from ckpt.model import OpenFile, Snapshot, State, Task


class Files:
    """`keep`: takes in descriptors of ours that newborns are to have. `trial`: nothing may be seen outside. `wanted`: open files
    know what was found for them."""

    def __init__(self, wanted: Snapshot, keep: list[int], *, trial: bool = False) -> None:
        self._trial = trial
        self._fifos: dict[tuple[int, int], int] = {}  #: inode of then -> our place of what stands for it in a trial
        self.warnings: list[str] = []
        self._keep = keep
        self._members = {thread.tid for task in wanted.tasks for thread in task.threads}
        self._names = _names(wanted)
        self._controlling: dict[int, State] = {}  #: pty of then -> what its session needs to get it as its controlling terminal
        self._at = self._terminals(wanted)
        known: dict[str, Callable[[OpenFile], dict[str, Any]]] = {
            "pty": self._terminal,
            "pidfd": self._process,
            "fifo": self._fifo,
            "file": self._file,
            "udp": self._udp,
            "procfile": self._of_process,
        }
        held = queues.located(watches.located(wanted, keep), trial=trial)
        changed = (self._learnt(file, known[file.kind]) if file.kind in known and file.id in self._names else file for file in held.files)
        self.wanted = replace(held, files=tuple(changed), tasks=tuple(map(self._controlled, held.tasks)))

    def _learnt(self, file: OpenFile, find: Callable[[OpenFile], dict[str, Any]]) -> OpenFile:
        try:
            return replace(file, state={**file.state, **find(file)})
        except RefusedError as error:
            raise RefusedError(f"{self._names[file.id]}: {error}") from None

    # ---- terminals ----

    def _terminals(self, wanted: Snapshot) -> dict[int, int]:
        """OpenFile.id -> our descriptor of a terminal's end."""
        ends = [file for file in wanted.files if file.kind == "pty" and file.id in self._names]
        found: dict[int, int] = {}
        for master in sorted((file for file in ends if file.state["master"]), key=lambda file: int(file.state["index"])):
            index = master.state["index"]
            made = Terminal(master, self._keep)
            slaves = [file for file in ends if not file.state["master"] and file.state["index"] == index]
            found |= made.ends(master, slaves)
            if slaves:  # a terminal that nobody has open controls nobody
                self._controlling[index] = {"index": made.index, "at": found[slaves[0].id]}
            if made.index != index:
                self.warnings.append(f"{self._names[master.id]}: pty {index} is somebody else's by now: it is pty {made.index}")
        return found

    def _terminal(self, file: OpenFile) -> dict[str, Any]:
        return {"at": self._at[file.id]} if file.id in self._at else {}

    def _controlled(self, task: Task) -> Task:
        state = task.attributes.get("terminal")
        if not state:
            return task
        found = self._controlling.get(state["index"])
        if found is None:
            self.warnings.append(f"task {task.pid} ({task.comm}): its controlling terminal pty {state['index']} is not brought back")
        return replace(task, attributes={**task.attributes, "terminal": {**state, **found} if found else {}})

    # ---- files with names ----

    def _fifo(self, file: OpenFile) -> dict[str, Any]:
        inode = file.state["dev"], file.state["ino"]
        if self._trial:
            if inode not in self._fifos:
                self._fifos[inode] = fifos.apart()
                self._keep.append(self._fifos[inode])
            return {"through": f"/proc/self/fd/{self._fifos[inode]}", "deleted": False}
        if file.state["contents"] and not file.state.get("outside") and fifos.is_read(file.state["path"]):
            self.warnings.append(f"{self._names[file.id]}: another process reads FIFO {file.state['path']}: what was in it is not put back")
            return {"outside": True}
        return {}

    def _file(self, file: OpenFile) -> dict[str, Any]:
        return {"locks": []} if self._trial else {}

    # ---- sockets ----

    def _udp(self, file: OpenFile) -> dict[str, Any]:
        groups = file.state.get("groups", ())
        if not groups or self._trial:
            return {"groups": multicast.in_own_network(groups)} if groups else {}
        return {"groups": [{**group, "index": _interface(group)} for group in groups]}

    # ---- processes ----

    def _of_process(self, file: OpenFile) -> dict[str, Any]:
        if file.state["pid"] and file.state["pid"] not in self._members:
            raise RefusedError(f"{file.state['path']} is of a process outside the tree: close it before a snapshot")
        return {}

    def _process(self, file: OpenFile) -> dict[str, Any]:
        if file.state["pid"] in self._members:
            return {}
        at = processes.outside(file) if file.state["pid"] > 0 else processes.ended()
        self._keep.append(at)
        fcntl.fcntl(at, fcntl.F_SETFL, file.flags & os.O_NONBLOCK)
        return {"at": at}


def _interface(group: multicast.Group) -> int:
    try:
        return socket.if_nametoindex(group["device"])
    except OSError:
        raise RefusedError(f"interface {group['device']}, on which it is in multicast group {group['group']}, is gone") from None


def _names(wanted: Snapshot) -> dict[int, str]:
    """OpenFile.id -> what a person calls it."""
    found: dict[int, str] = {}
    for task in wanted.tasks:
        for item in task.descriptors:
            found.setdefault(item.file, f"fd {item.fd} of task {task.pid} ({task.comm})")
    return found
