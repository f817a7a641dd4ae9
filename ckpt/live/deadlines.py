"""eBPF at a freeze: when the waits that it interrupts would have ended, as the kernel has it (bpf/deadlines.py).

Attached where a thread is about to be interrupted in a finite wait whose end the kernel has not told yet (known.py), and only around that
freeze: it hooks every call's exit on the machine. Loading from the cache takes 3 ms, outside of the frozen window; where nobody waits so it
is not even imported. Nothing is compiled while anybody waits: whoever finds it not compiled says so, and compiles it when its own work is
done.

Without it everything works, with deadlines as they are reckoned; `missing` says why, and the generation with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ckpt.live import clock
from ckpt.syscalls.told import Told

if TYPE_CHECKING:
    import bpf

NAME = "deadlines"
NOT_COMPILED = "its program was not compiled for this kernel yet"


@dataclass(frozen=True, slots=True)
class Ended:
    """How a call ended that a freeze has interrupted."""

    record: bpf.Interrupted

    @property
    def place(self) -> tuple[int, int, int]:
        return self.record.nr, self.record.sp, self.record.ip

    def call(self, args: Sequence[int]) -> int:
        return self.record.call(args)

    def told(self, call: int) -> Told | None:
        between = self.record.deadline(call)
        return None if between is None else Told(*between, self.record.source, self.record._asdict())


class Deadlines:
    """Of one ckpt, for as long as the `with` lasts."""

    def __init__(self) -> None:
        self.missing = ""  #: why it cannot be used; "" where it can, or nobody has wanted it
        self._programs: bpf.Deadlines | None = None
        self._attached_at = 0
        self.attached = False

    def begin(self, pids: Iterable[int]) -> None:
        """These are about to be stopped."""
        if self.missing:
            return
        from bpf import BpfError

        self.detach()
        try:
            programs = self._programs or self._load()
            self._attached_at = clock.now_ns()
            programs.attach(pids)
            self.attached = True
        except (BpfError, OSError) as error:
            self.missing = str(error)

    def _load(self) -> bpf.Deadlines:
        import bpf

        if (error := bpf.missing((NAME,))) is not None:
            raise error
        if not bpf.compiled((NAME,)):
            raise bpf.BpfError("compile", bpf.given_up(NAME) or NOT_COMPILED)
        self._programs = bpf.Deadlines()
        return self._programs

    def ended(self, stopped_at: int) -> Mapping[int, Ended]:
        """The last interrupted call of each thread before `stopped_at`, when they stood still. What came later is another wait."""
        told = self._programs.take() if self._programs is not None else ()
        return {record.tid: Ended(self._fresh(record)) for record in told if self._attached_at <= record.ns <= stopped_at}

    def _fresh(self, record: bpf.Interrupted) -> bpf.Interrupted:
        """Without a timer that was taken back in an earlier call: its end was not seen."""
        return record if record.taken_ns >= self._attached_at else record._replace(timer=0)

    def detach(self) -> None:
        if self._programs is not None and self.attached:
            self._programs.detach()
        self.attached = False

    def compile_ahead(self) -> None:
        """Nobody waits any more."""
        if self.missing != NOT_COMPILED:
            return
        from bpf import BpfError, compile_ahead

        self.missing = ""
        with suppress(OSError):
            try:
                compile_ahead(NAME)
            except BpfError as error:
                self.missing = str(error)

    def close(self) -> None:
        if self._programs is not None:
            self._programs.close()
            self._programs = None
        self.attached = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
