"""The root directory, where the capture gives its link text (files["root"])."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ckpt.kinds.base import CannotUndo, RawTask
from ckpt.model import RemoteCall, State


class Root:
    name = "root"
    per_thread = False
    proc_files: tuple[str, ...] = ()
    questions = ()

    def parse(self, raw: RawTask) -> State:
        link = raw.files.get("root")
        return {"path": os.fsdecode(link)} if link is not None else {}

    def restore(self, now: State, wanted: State) -> Sequence[RemoteCall]:
        if wanted and now and now["path"] != wanted["path"]:
            raise CannotUndo(f"it has changed its root from {wanted['path']} to {now['path']}")
        return []


KIND = Root()
