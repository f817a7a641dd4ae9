"""What ckpt remembers of a living target between invocations: a record and a lock in a run-time folder.

Invariants
 1. Scanning consumes the kernel's dirty state. So the record says "consumed" before the first scan, and
    "generation N of store S" only after N was committed to S. Anything but a record that matches means: read everything.
 2. A record belongs to one incarnation (boot id, pid namespace, pid, start ticks, auxv): a recycled pid, an exec or a
    reboot never matches.
 3. The lock is held from arming to commit; it dies with its holder (flock), so nothing has to be cleaned up.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ckpt.errors import CkptError, NotFoundError
from ckpt.live import clock
from ckpt.model import PidRef
from ckpt.procfs import parse_stat


class BusyError(CkptError):
    """Another ckpt is at work on the target."""


def folder() -> Path:
    """`/run/ckpt` for root, else `$XDG_RUNTIME_DIR/ckpt`, else a folder of the user's own under /tmp (mode 0700)."""
    if os.environ.get("CKPT_RUNTIME_DIR"):
        path = Path(os.environ["CKPT_RUNTIME_DIR"])
    elif os.geteuid() == 0:
        path = Path("/run/ckpt")
    else:
        path = Path(os.environ.get("XDG_RUNTIME_DIR", f"/tmp/ckpt-{os.geteuid()}")) / "ckpt"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.stat().st_uid != os.geteuid():
        raise CkptError(f"{path}: belongs to another user: remove it, or set CKPT_RUNTIME_DIR")
    return path


def start_ticks(pid: int) -> int:
    """Field 22 of /proc/PID/stat as the machine counts it (clock.py); NotFoundError if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        raise NotFoundError(f"no process {pid}: give the pid of a living process") from None
    return clock.ticks(int(text[text.rindex(b")") + 2 :].split()[19]))


def lives(pid: int, start: int) -> bool:
    """Whether the process that began at `start` still runs: not gone, no zombie, and the number not somebody else's."""
    try:
        stat = parse_stat(Path(f"/proc/{pid}/stat").read_bytes())
    except (FileNotFoundError, ProcessLookupError):
        return False
    return clock.ticks(stat.start_ticks) == start and stat.state not in "ZX"


def incarnation(ref: PidRef) -> str:
    """One living run of a program: `BOOT:PIDNS:PID:START:EXEC`. EXEC is a digest of auxv, which every exec lays out anew."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
    namespace = Path(f"/proc/{ref.pid}/ns/pid").stat().st_ino
    auxv = Path(f"/proc/{ref.pid}/auxv").read_bytes()
    return f"{boot}:{namespace}:{ref.pid}:{ref.start_ticks}:{hashlib.blake2b(auxv, digest_size=4).hexdigest()}"


def same_process(a: str, b: str) -> bool:
    """Whether two incarnations are one process (perhaps with an exec between)."""
    return a.split(":")[:4] == b.split(":")[:4]


@dataclass(frozen=True, slots=True)
class TrackerSeat:
    """Where the tracker's descriptor sits inside one process of the tree."""

    pid: int
    start_ticks: int
    fd: int
    ino: int


@dataclass(frozen=True, slots=True)
class Record:
    incarnation: str
    lineage: str
    store: str = ""  #: uuid of the store; "" = consumed, no baseline
    generation: int = 0
    seats: tuple[TrackerSeat, ...] = ()

    def consumed(self) -> Record:
        return replace(self, store="", generation=0)


def path_of(ref: PidRef, ending: str) -> Path:
    """A file of this process: its record (json), lock, journal, waits."""
    return folder() / f"{ref.pid}-{ref.start_ticks}.{ending}"


def load(ref: PidRef) -> Record | None:
    """The record of this process, if there is one that can be read and is of this incarnation's process."""
    try:
        raw = json.loads(path_of(ref, "json").read_text())
        seats = tuple(TrackerSeat(**seat) for seat in raw.pop("seats"))
        record = Record(**raw, seats=seats)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return record if same_process(record.incarnation, incarnation(ref)) else None


def save(ref: PidRef, record: Record) -> None:
    """Writes the record over the old one, in place and in one write: replacing the file would make some file systems flush
    it first (2 ms). A torn record is no record. Not synced: after a crash of the machine no target is alive."""
    path = path_of(ref, "json")
    try:
        with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b", buffering=0) as file:  # noqa: PTH123
            text = json.dumps(asdict(record)).encode()
            os.pwrite(file.fileno(), text.ljust(os.fstat(file.fileno()).st_size), 0)
    except OSError as error:
        raise CkptError(
            f"{path}: cannot be written ({error.strerror}): make room there, or set CKPT_RUNTIME_DIR to another folder"
        ) from None


def forget(ref: PidRef) -> None:
    path_of(ref, "json").unlink(missing_ok=True)


@contextmanager
def target_lock(ref: PidRef, timeout_s: float = 10.0) -> Iterator[None]:
    """Only one ckpt acts on a target at a time; waits up to timeout_s, then CkptError names the holder."""
    path = path_of(ref, "lock")
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    holder = os.pread(handle, 32, 0).decode(errors="replace").strip() or "another process"
                    raise BusyError(f"task {ref.pid}: ckpt {holder} is at work on it: try again when it is done") from None
                time.sleep(0.02)
        with suppress(OSError):  # a full disk: nobody learns who holds it
            os.ftruncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)


def sweep() -> int:
    """Removes records and locks of processes that are gone. Returns how many files went."""
    gone = 0
    for path in folder().glob("*-*.*"):
        pid, _, start = path.name.split(".")[0].partition("-")
        try:
            alive = start_ticks(int(pid)) == int(start)
        except (NotFoundError, ValueError):
            alive = False
        if not alive:
            path.unlink(missing_ok=True)
            gone += 1
    return gone
