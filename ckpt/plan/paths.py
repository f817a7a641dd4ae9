"""Files that are opened again by their path: whether it still leads to that very file, and what has become of it. Pure.

An O_APPEND log goes on at its end. A longer file that is written by position gets its position back; one that is shorter than
the position is refused, for what was read or written there is no more.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from ckpt.kinds.base import CannotUndo
from ckpt.kinds.fd import locks
from ckpt.model import OpenFile, Snapshot
from ckpt.plan.sources import FileIdentity, World

_PROC = re.compile(r"/proc/(\d+)(?:/|$)")


def opened_paths(wanted: Snapshot) -> set[str]:
    """Paths that may have to be opened again."""
    names = [str(file.state["name"]) for file in wanted.files if file.state.get("name")]
    opened = {str(file.state["path"]) for file in wanted.files if "path" in file.state and "ino" in file.state}
    return opened.union(names, (str(Path(name).parent) for name in names))


def judge(file: OpenFile, world: World, members: Collection[int] = ()) -> Sequence[str]:
    """Warnings. Raises CannotUndo, which says what has changed. `members`: pids of the tree, whose own entries in /proc are the same by
    their names: the kernel numbers such inodes anew when it likes."""
    path = file.state.get("path")
    if not isinstance(path, str) or "ino" not in file.state or "through" in file.state:
        return ()
    there = world.get(path)
    if there is None:
        raise CannotUndo(f"{path} is gone: put it back")
    own = _PROC.match(path)
    if own and int(own[1]) in members and there.dev == file.state["dev"]:
        return ()
    if (there.dev, there.ino) != (file.state["dev"], file.state["ino"]):
        raise CannotUndo(f"{path} is another file by now (inode {there.ino}, then {file.state['ino']}): move the old one back")
    if file.kind != "file":
        return ()
    taken = locks.taken(file.state.get("locks", ()), there.locks)
    if taken is not None:
        raise CannotUndo(f"{path}: another process has a lock that it held ({taken}): end that one")
    return _size(path, file, there)


def _size(path: str, file: OpenFile, there: FileIdentity) -> Sequence[str]:
    then = file.state.get("size", max(file.pos, there.size))
    if there.size == then:
        return ()
    appends, writes = file.flags & os.O_APPEND, file.flags & os.O_ACCMODE
    change = f"{path} has become {'longer' if there.size > then else 'shorter'} ({then} bytes then, {there.size} now)"
    if there.size < file.pos and not appends:
        raise CannotUndo(f"{change}: shorter than the position {file.pos} in it: put back what is missing")
    if appends and there.size < then:
        return [f"{change}: it goes on at its end"]
    if writes and not appends:
        return [f"{change}: written at position {file.pos} as before" if there.size > then else change]
    return () if there.size > then else [change]
