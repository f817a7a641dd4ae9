"""Threads that wait in a read of a terminal in raw mode with VMIN or VTIME: what a stop does to them cannot be undone.

The kernel (n_tty_read) keeps both in the read's own frame. Where nothing has come yet, an interrupted read begins anew, with its whole
VTIME if VMIN is 0 (it counts from the read's beginning only then); where some bytes of VMIN have come, it returns with those. How many
have come is seen by nobody outside. So `ckpt check` says it beforehand. Who asks for one byte, or for the first that comes, loses nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from ckpt.kinds.base import RawDescriptor, Work
from ckpt.kinds.fd.pty import KIND
from ckpt.live import preflight
from ckpt.live.blocked import blocked_call
from ckpt.live.core import Tree
from ckpt.live.preflight import Problem
from ckpt.syscalls.names import nr

_LOCAL_FLAGS, _SETTINGS = struct.Struct("<12xI"), 17  #: of struct termios2: c_lflag, and where c_cc begins
_VTIME, _VMIN, _ICANON = 5, 6, 2


def examine(tree: Tree, descriptors: Sequence[RawDescriptor]) -> Iterator[Problem]:
    """`descriptors`: those of the tree that a look has met (preflight.examine)."""
    terminals = {
        (raw.pid, raw.fd): raw for raw in descriptors if raw.work.get(Work.TTY) and KIND.recognises(raw) and not KIND.is_master(raw)
    }
    waiting = {pid for pid, _ in terminals}
    for thread in tree.threads():
        if thread.pid not in waiting:
            continue
        call, arguments = blocked_call(thread.pid, thread.tid)
        raw = terminals.get((thread.pid, arguments[0] & 0xFFFF_FFFF)) if call in (nr("read"), nr("readv")) else None
        loss = raw and lost(raw.work[Work.TTY], arguments[2] if call == nr("read") else None)
        if raw and loss:
            text = f"thread {thread.tid} waits in a read of terminal {raw.link} {loss}"
            yield Problem(thread.pid, False, preflight.refusal(raw.fd, thread.pid, preflight.command_name(thread.pid), text))


def lost(settings: bytes, wanted: int | None) -> str | None:
    """What of a read of `wanted` bytes (None: not known) a stop may lose. `settings`: struct termios2."""
    least, tenths = settings[_SETTINGS + _VMIN], settings[_SETTINGS + _VTIME]
    if _LOCAL_FLAGS.unpack_from(settings)[0] & _ICANON:
        return None
    if least == 0:
        return f"with VTIME {tenths / 10:.1f} s: a snapshot makes that time begin anew" if tenths else None
    if least == 1 or wanted == 1:
        return None
    limit = f" and VTIME {tenths / 10:.1f} s" if tenths else ""
    return f"with VMIN {least}{limit}: if fewer bytes have come by then, a snapshot makes it return with those"
