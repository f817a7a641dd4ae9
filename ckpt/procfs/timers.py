"""/proc/PID/timers: POSIX timers of a process (fs/proc/base.c, show_timer). What remains stands only in timer_gettime."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PosixTimer:
    id: int
    signo: int
    sigval: int  #: sigev_value as an address
    notify: str  #: "signal", "none" or "thread"
    tid: int  #: > 0: SIGEV_THREAD_ID to this thread, else 0
    clock: int


def parse_timers(text: bytes) -> tuple[PosixTimer, ...]:
    """A record begins at "ID:"; `signal: 14/(pointer)`; `notify: signal/pid.N` or `signal/tid.N`; `ClockID: n`."""
    blocks: list[dict[str, str]] = []
    for line in text.decode("ascii", "replace").splitlines():
        name, colon, rest = line.partition(":")
        if name == "ID":
            blocks.append({})
        if colon and blocks:
            blocks[-1][name] = rest.strip()
    return tuple(_timer(block) for block in blocks)


def _timer(block: dict[str, str]) -> PosixTimer:
    try:
        signo, pointer = block["signal"].split("/", 1)
        notify, target = block["notify"].split("/", 1)
        kind, number = target.split(".", 1)
        sigval = 0 if "null" in pointer else int(pointer, 16)  # "(null)" is how %px prints nothing
        return PosixTimer(int(block["ID"]), int(signo), sigval, notify, int(number) if kind == "tid" else 0, int(block["ClockID"]))
    except KeyError as missing:
        raise ValueError(f"timers: a record without {missing}") from None
