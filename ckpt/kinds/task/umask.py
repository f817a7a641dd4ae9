"""The file mode creation mask (a threads' table of file system attributes shares it)."""

from __future__ import annotations

from collections.abc import Sequence

from ckpt.kinds.base import RawTask, call
from ckpt.model import RemoteCall, State
from ckpt.procfs import parse_status
from ckpt.syscalls.names import nr


class Umask:
    name = "umask"
    per_thread = False
    proc_files = ("status",)
    questions = ()

    def parse(self, raw: RawTask) -> State:
        return {"mask": parse_status(raw.files["status"]).umask}

    def restore(self, now: State, wanted: State) -> Sequence[RemoteCall]:
        if not wanted or now.get("mask") == wanted["mask"]:
            return []
        return [call(nr("umask"), wanted["mask"], note=f"umask {wanted['mask']:04o}")]


KIND = Umask()
