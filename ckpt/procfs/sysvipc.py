"""/proc/sysvipc/shm -> System V segments of the reader's own IPC namespace (ipc/shm.c, sysvipc_shm_proc_show)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Segment:
    shmid: int
    key: int
    mode: int  #: with SHM_DEST (01000): gone with its last mapping
    size: int
    attached: int
    uid: int
    gid: int


def parse_segments(text: bytes) -> dict[int, Segment]:
    """shmid -> segment."""
    found: dict[int, Segment] = {}
    for line in text.split(b"\n")[1:]:
        words = line.split()
        if len(words) >= 9:
            key, shmid, mode, size, _creator, _last, attached, uid, gid = words[:9]
            found[int(shmid)] = Segment(int(shmid), int(key), int(mode, 8), int(size), int(attached), int(uid), int(gid))
    return found
