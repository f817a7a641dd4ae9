"""The execution domain of a thread, personality(2): address space layout and other switches for its next exec."""

from __future__ import annotations

from collections.abc import Sequence

from ckpt.kinds.base import Question, RawTask, call
from ckpt.model import RemoteCall, State
from ckpt.syscalls.names import nr

_ASK = 0xFFFF_FFFF


class Personality:
    name = "personality"
    per_thread = True
    proc_files: tuple[str, ...] = ()
    questions = (Question(nr("personality"), (_ASK,)),)

    def parse(self, raw: RawTask) -> State:
        return {"persona": raw.answers[0].retval} if raw.answers and raw.answers[0].retval >= 0 else {}

    def in_clone(self, state: State) -> State:
        return state

    def restore(self, now: State, wanted: State) -> Sequence[RemoteCall]:
        if not wanted or now.get("persona") == wanted["persona"]:
            return []
        return [call(nr("personality"), wanted["persona"], note=f"personality {wanted['persona']:#x}")]


KIND = Personality()
