"""The root directory, where the capture gives its link text (files["root"]). A task whose root is ours (a newborn) can be given another;
one that has its own already cannot leave it."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ckpt.kinds.base import CannotUndo, RawTask, call
from ckpt.model import RemoteCall, State
from ckpt.syscalls.names import nr


class Root:
    name = "root"
    per_thread = False
    order = 80  #: /proc may not be there afterwards; the working directory is a path in it
    proc_files: tuple[str, ...] = ()
    questions = ()

    def parse(self, raw: RawTask) -> State:
        link = raw.files.get("root")
        return {"path": os.fsdecode(link)} if link is not None else {}

    def restore(self, now: State, wanted: State) -> Sequence[RemoteCall]:
        if not wanted or not now or now["path"] == wanted["path"]:
            return []
        if now["path"] != "/":
            raise CannotUndo(f"its root was {wanted['path']} and is {now['path']}, which it cannot leave")
        return [call(nr("chroot"), os.fsencode(wanted["path"]) + b"\0", note=f"chroot {wanted['path']}")]


KIND = Root()
