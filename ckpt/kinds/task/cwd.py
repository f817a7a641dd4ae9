"""The working directory, by its path as the process itself sees it (getcwd)."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ckpt.kinds.base import CannotUndo, Question, RawTask, call
from ckpt.model import RemoteCall, State
from ckpt.syscalls.names import nr

_ROOM = 1024
_DELETED = b" (deleted)"


class WorkingDirectory:
    name = "cwd"
    per_thread = False
    order = 81  #: inside the root
    proc_files: tuple[str, ...] = ()
    questions = (Question(nr("getcwd"), (0, _ROOM), 0, _ROOM),)

    def parse(self, raw: RawTask) -> State:
        """`path` is None where it has none: deleted, or outside the root. A link text in files["cwd"] serves where nobody was asked."""
        if raw.answers and raw.answers[0].retval > 0:
            path = raw.answers[0].data[: raw.answers[0].retval].split(b"\0")[0]
            return {"path": os.fsdecode(path) if path.startswith(b"/") else None}
        link = raw.files.get("cwd", b"")
        if not link and not raw.answers:
            return {}
        return {"path": None if not link or link.endswith(_DELETED) else os.fsdecode(link)}

    def restore(self, now: State, wanted: State) -> Sequence[RemoteCall]:
        if not wanted or now.get("path") == wanted["path"]:
            return []
        if wanted["path"] is None:
            raise CannotUndo("its directory has been deleted")
        return [call(nr("chdir"), os.fsencode(wanted["path"]) + b"\0", note=f"chdir {wanted['path']}")]


KIND = WorkingDirectory()
