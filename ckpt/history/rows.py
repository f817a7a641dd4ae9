"""A snapshot as ordinary rows, for SQL and for people who open the store in Datasette. Pure.

Columns carry their unit in the name where it is not a count of pages; words stand where the kernel has bits
("rw-p", "restart"), because these rows are read, not restored from: the codec's document is what counts.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator
from collections.abc import Mapping as MappingABC
from typing import Any

from ckpt.history.runs import PageSet
from ckpt.model import PAGE, Evidence, Mapping, OpenFile, Snapshot, State, Task

Row = dict[str, Any]
Sets = MappingABC[int, PageSet]
_SHARED = 0x01  #: MAP_SHARED
_I64 = 1 << 63


def plain_rows(snapshot: Snapshot, layout: Sets, dirty: Sets) -> dict[str, list[Row]]:
    """{table: rows} without the generation's number, which the store adds. `layout` and `dirty`: by space."""
    objects = {(item.dev, item.ino): item.space for item in snapshot.objects}
    files = {file.id: file for file in snapshot.files}
    rows: dict[str, list[Row]] = {"processes": [], "threads": [], "mappings": [], "descriptors": []}
    for task in snapshot.tasks:
        rows["processes"].append(_process(task, layout, dirty))
        rows["threads"] += _threads(task)
        rows["mappings"] += [_mapping(task, mapping, objects, layout, dirty) for mapping in task.mappings]
        rows["descriptors"] += _descriptors(task, files)
    return rows


def permissions(mapping: Mapping) -> str:
    """As /proc/PID/maps writes it: "rw-p"."""
    letters = "".join(letter if mapping.prot & bit else "-" for letter, bit in (("r", 1), ("w", 2), ("x", 4)))
    return letters + ("s" if mapping.flags & _SHARED else "p")


def mapping_name(mapping: Mapping) -> str:
    """What a person calls it: the path, "[heap]", or "[anonymous]"."""
    return mapping.name or mapping.backing.path or f"[{mapping.backing.kind}]"


def file_summary(file: OpenFile) -> str:
    """One short text of what an open file is: its path where it has one, else its state."""
    path = file.state.get("path") or file.state.get("link")
    return str(path) if path else plain_state(file.state)


def plain_state(state: State, limit: int = 120) -> str:
    """key=value of the plain members, long ones cut."""
    parts = [f"{key}={item if isinstance(item, str | int) else json.dumps(item)}" for key, item in state.items() if item not in (None, "")]
    text = " ".join(parts)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _process(task: Task, layout: Sets, dirty: Sets) -> Row:
    return {
        "pid": task.pid,
        "ppid": task.ppid,
        "pgid": task.pgid,
        "sid": task.sid,
        "start_ticks": task.start_ticks,
        "comm": task.comm,
        "space": task.mm,
        "threads": len(task.threads),
        "pages": len(layout[task.mm]) if task.mm in layout else 0,
        "dirty": len(dirty[task.mm]) if task.mm in dirty else 0,
    }


def _threads(task: Task) -> list[Row]:
    return [
        {
            "pid": task.pid,
            "tid": thread.tid,
            "phase": thread.syscall.phase,
            "syscall": thread.syscall.nr,
            "raw_retval": thread.syscall.raw_retval,
            "action": thread.decision.action.value,
            "reason": thread.decision.reason,
            "disturbed": int(thread.decision.disturbed),
        }
        for thread in task.threads
    ]


def writer_rows(evidence: Evidence) -> list[Row]:
    return [
        {"writer": number, "ip": one.ip, "file": one.file, "symbol": one.symbol, "offset": one.offset, "call": one.call}
        for number, one in enumerate(evidence.writers)
    ]


WRITE_COLUMNS = ("space", "page", "written_ns", "pid", "tid", "writer")


def write_rows(snapshot: Snapshot, evidence: Evidence) -> Iterator[tuple[int, ...]]:
    """Writes of pages that are still mapped, by space and page; WRITE_COLUMNS."""
    objects = {(item.dev, item.ino): item.space for item in snapshot.objects}
    spans = {
        task.pid: [(mapping.start, mapping.end, *_place(task, mapping, objects)) for mapping in task.mappings] for task in snapshot.tasks
    }
    starts = {pid: [span[0] for span in mapped] for pid, mapped in spans.items()}
    for pid, address, written_ns, tid, writer in evidence.writes:
        at = bisect_right(starts.get(pid, ()), address) - 1
        if at >= 0 and address < spans[pid][at][1]:
            start, _, space, page = spans[pid][at]
            yield space, page + (address - start) // PAGE, written_ns, pid, tid, writer


def _place(task: Task, mapping: Mapping, objects: MappingABC[tuple[int, int], int]) -> tuple[int, int]:
    """(space, page) at which a mapping begins: an object's pages are numbered by offset, a memory's by address."""
    if mapping.backing.kind == "object":
        return objects.get((mapping.backing.dev, mapping.backing.ino), task.mm), mapping.backing.offset // PAGE
    return task.mm, mapping.start // PAGE


def _mapping(task: Task, mapping: Mapping, objects: MappingABC[tuple[int, int], int], layout: Sets, dirty: Sets) -> Row:
    backing = mapping.backing
    space, first = _place(task, mapping, objects)
    end = first + (mapping.end - mapping.start) // PAGE
    return {
        "pid": task.pid,
        "space": space,
        "start": signed(mapping.start),
        "end": signed(mapping.end),
        "first_page": first,
        "permissions": permissions(mapping),
        "kind": backing.kind,
        "name": mapping_name(mapping),
        "offset": signed(backing.offset),
        "pages": layout[space].count(first, end) if space in layout else 0,
        "dirty": dirty[space].count(first, end) if space in dirty else 0,
    }


def _descriptors(task: Task, files: MappingABC[int, OpenFile]) -> list[Row]:
    rows = []
    for descriptor in task.descriptors:
        file = files[descriptor.file]
        rows.append(
            {
                "pid": task.pid,
                "fd": descriptor.fd,
                "cloexec": int(descriptor.cloexec),
                "file": file.id,
                "kind": file.kind,
                "flags": file.flags,
                "position": signed(file.pos),
                "summary": file_summary(file),
            }
        )
    return rows


def signed(number: int) -> int:
    """SQLite's integers are signed: [vsyscall] at the top of the address space becomes negative."""
    number &= (1 << 64) - 1
    return number - (1 << 64) if number >= _I64 else number
