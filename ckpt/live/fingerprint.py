"""Whether a second look at a frozen tree shows anything that a plan depends on: raw records compared, nothing parsed.

What changes in every process all the time is left out: registers (a rollback sets them anyway), the state, times, faults
and sizes in stat and status; which thread of ours traces it; how many signals its user has queued in all processes (its own
are records of their own). A record in doubt counts as a change: then the tree is parsed and planned again, which is only slower.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ckpt.live.records import DECISION, HEADER, PROC_FILE, REGS, SIGMASK, THREAD_FILE, XSTATE

_ALWAYS_SET = frozenset((REGS, XSTATE, SIGMASK, DECISION))  #: a rollback sets these whatever they are now
#: proc_pid_stat(5), counted from the state: state, the four fault counts, four times, vsize, rss, esp, eip, the four words of
#: signals (status has them), wchan, processor, the block-delay, guest times
_STAT_VOLATILE = frozenset((3, *range(10, 18), 23, 24, *range(29, 38), 39, 42, 43, 44))
_STATUS_VOLATILE = re.compile(
    rb"^(?:State|TracerPid|SigQ|Vm\w+|Rss\w+|HugetlbPages|THP_enabled|(?:non)?voluntary_ctxt_switches):.*\n", re.M
)

Fingerprint = dict[tuple[int, int, int, int, int, int], bytes]


def fingerprint(records: memoryview, process_files: Sequence[str], thread_files: Sequence[str]) -> Fingerprint:
    """What the records say about all that a plan may change; equal fingerprints mean an equal plan."""
    found: Fingerprint = {}
    offset = place = 0
    while offset < len(records):
        kind, pid, tid, fd, index, size = HEADER.unpack_from(records, offset)
        start = offset + HEADER.size
        offset = (start + size + 7) & ~7
        if kind in _ALWAYS_SET:
            continue
        names = process_files if kind == PROC_FILE else thread_files if kind == THREAD_FILE else ()
        data = bytes(records[start : start + size])
        found[kind, pid, tid, fd, index, place] = _steady(names[index], data) if names else data
        place += 1
    return found


def _steady(name: str, text: bytes) -> bytes:
    if name == "stat":
        head, _, tail = text.rpartition(b")")
        fields = tail.split()
        return head + b" ".join(word for number, word in enumerate(fields, 3) if number not in _STAT_VOLATILE)
    if name == "status":
        return _STATUS_VOLATILE.sub(b"", text)
    return text
