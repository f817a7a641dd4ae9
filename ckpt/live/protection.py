"""Keeping a tree's pages protected while somebody watches its writes: what was written is protected again, and so tells its next write.

That consumes the dirty state from which the next snapshot would know what to read. So:
 1. Where a baseline stands (the last snapshot's record), it is left alone: then only the first write of each page since that snapshot is
    seen. Asked for all the same, the record says "consumed" before the first page is protected: the next snapshot reads everything.
 2. Where none stands, nothing is lost. A tracker that is armed for the watching alone is taken away again at the end.
 3. Nobody is stopped for it but to arm the tracker or take in large new mappings, as pre-copy does.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from ckpt.errors import CkptError
from ckpt.live import core, freezer, runtime, track
from ckpt.model import PidRef

ANEW, SINCE, NONE = "anew", "since the last snapshot", "none"


class Protection:
    def __init__(self, ref: PidRef, *, rearm: bool) -> None:
        self.ref, self.rearm = ref, rearm
        self.mode = NONE  #: ANEW | SINCE | NONE
        self.warnings: tuple[str, ...] = ()
        self._own: tuple[runtime.TrackerSeat, ...] = ()  #: armed for this alone, recorded nowhere

    def again(self) -> int | None:
        """Protects what was written: how many pages, by the scan. None: it was left alone, or another ckpt is at work there."""
        try:
            with runtime.target_lock(self.ref, 0.0):
                return self._again()
        except runtime.BusyError:
            return None
        except (CkptError, FileNotFoundError, ProcessLookupError):
            if runtime.lives(self.ref.pid, self.ref.start_ticks):
                raise
            return None

    def _again(self) -> int | None:
        record = runtime.load(self.ref)
        stands = record is not None and record.store and record.incarnation == runtime.incarnation(self.ref)
        if stands and not self.rearm:
            self.mode, self._own = SINCE, ()
            return None
        with core.Tree(self.ref.pid, self.ref.start_ticks) as tree:
            freezer.refuse_frozen(tree, "tracing")
            if record is not None and record.store:
                runtime.save(self.ref, record.consumed())
            armed = track.arm(tree, "auto", record.seats if record is not None else self._own)
            if record is not None:
                self._own = ()
                if armed.seats != record.seats:
                    runtime.save(self.ref, replace(record.consumed(), seats=armed.seats))
            else:
                self._own = armed.seats
            self.warnings = armed.warnings
            tracked = [one for one in armed.tracks if one.tracker == core.UFFD]
            self.mode = ANEW if tracked else NONE
            return sum(tree.protect(one) for one in tracked)

    def close(self) -> None:
        """Takes away what was armed for this alone."""
        if not self._own or not runtime.lives(self.ref.pid, self.ref.start_ticks):
            return
        with suppress(CkptError, OSError), runtime.target_lock(self.ref):
            if runtime.load(self.ref) is not None:
                return  # a snapshot has come meanwhile, and has its own
            with core.Tree(self.ref.pid, self.ref.start_ticks) as tree:
                there = {thread.pid for thread in tree.threads()}
                for seat in self._own:
                    if seat.pid in there and runtime.lives(seat.pid, seat.start_ticks):
                        tree.disarm(core.Track(seat.pid, core.UFFD, seat.fd, seat.ino, fresh=False))
