"""The controlling terminal of a process, where that is a pty whose master is in the tree; somebody else's is nobody's business here.

A session's leader acquires it, and its children have it by birth. So a new leader acquires it before it has any (plan/family.py); for a
restore ckpt has made the pty by then (`at`: the newborn's descriptor of the slave, ckpt/live/files.py). What is left for this kind is the
foreground group, which the leader sets once all groups are populated, and the giving up by a process that had none.
The leader of a session that has lost its terminal, or got one since, cannot be put right in place: it is made again, as after an exit.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from ckpt.kinds.base import CannotUndo, RawTask, call, result
from ckpt.model import OpenFile, RemoteCall, State, Task, Zombie
from ckpt.procfs import parse_stat
from ckpt.syscalls.names import nr

SLAVES = range(136, 144)  #: major numbers, each with 256 ptys
TIOCSCTTY, TIOCSPGRP, TIOCNOTTY = 0x540E, 0x5410, 0x5422


class Terminal:
    name = "terminal"
    per_thread = False
    order = 5  #: before a change of root: /dev/tty may not be there
    proc_files = ("stat",)
    questions = ()

    def parse(self, raw: RawTask) -> State:
        """`foreground` of a leader alone: it is the session's."""
        stat = parse_stat(raw.files["stat"])
        major, minor = stat.tty_nr >> 8 & 0xFFF, stat.tty_nr & 0xFF | stat.tty_nr >> 12 & 0xFFF00  # linux/kdev_t.h, new_encode_dev
        if major not in SLAVES:
            return {}
        state = {"index": (major - SLAVES.start) * 256 + minor}
        return {**state, "foreground": stat.tpgid} if stat.sid == stat.pid else state

    def restore(self, now: State, wanted: State) -> Sequence[RemoteCall]:
        here, there = now.get("index"), wanted.get("index")
        if here != there and "foreground" not in now and there is None:
            return _on_terminal(TIOCNOTTY, 0, "give up the controlling terminal")
        if here != there and "at" not in wanted:
            was = "it had none" if there is None else f"it had pty {there}"
            raise CannotUndo(f"its controlling terminal is {'gone' if here is None else f'pty {here}'}; {was}")
        group = wanted.get("foreground")
        if here != there or not group or now.get("foreground") == group:
            return []
        return _on_terminal(TIOCSPGRP, struct.pack("<i", group), f"foreground group {group}")

    def caveats(self, now: State, wanted: State) -> Sequence[str]:
        if "at" in wanted and now.get("index") != wanted["index"]:
            return [f"its controlling terminal pty {wanted['index']} is not brought back: nobody of the tree leads its session"]
        if wanted.get("foreground") == 0:
            return [f"the foreground group of pty {wanted['index']} is of nobody of the tree: it is not brought back"]
        return []


def acquire(state: State) -> RemoteCall:
    """By a leader that has none. Opened by its name, the descriptor stays; the plan closes what nobody wants."""
    path = f"/dev/pts/{state['index']}"
    note = f"{path} as the controlling terminal"
    if "at" in state:
        return call(nr("ioctl"), state["at"], TIOCSCTTY, 0, note=note)
    return call(nr("open"), path.encode() + b"\0", os.O_RDWR, 0, note=note)


def own_terminals(tasks: Sequence[Task], zombies: Iterable[Zombie], files: Iterable[OpenFile]) -> tuple[Task, ...]:
    """The same tasks; only those of the tree's own ptys have a terminal, and only a group that lives here is in its foreground."""
    own = {file.state["index"] for file in files if file.kind == "pty" and file.state["master"]}
    groups = {task.pgid for task in tasks} | {dead.pgid for dead in zombies}

    def seen(state: State) -> State:
        if state.get("index") not in own:
            return {}
        return {**state, "foreground": 0} if state.get("foreground", 0) not in {0, *groups} else state

    kind = Terminal.name
    return tuple(replace(task, attributes={**task.attributes, kind: seen(task.attributes.get(kind, {}))}) for task in tasks)


def doubted(task: Task, made: Collection[int]) -> Task:
    """The kernel compares groups, not numbers: one that a new task leads is not the dead one of that number, which may be in the
    foreground still."""
    state = task.attributes.get(Terminal.name, {})
    if state.get("foreground") not in made:
        return task
    return replace(task, attributes={**task.attributes, Terminal.name: {**state, "foreground": 0}})


def _on_terminal(request: int, value: int | bytes, note: str) -> list[RemoteCall]:
    return [
        call(nr("open"), b"/dev/tty\0", os.O_RDWR, 0, note="open /dev/tty"),
        call(nr("ioctl"), result(0), request, value, note=note),
        call(nr("close"), result(0), note="close /dev/tty"),
    ]


KIND = Terminal()
