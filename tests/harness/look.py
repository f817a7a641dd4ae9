"""A stopped process as raw /proc and gdb show it: an independent reader, which shares no code with ckpt."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

GDB = shutil.which("gdb")
#: Of status: what the kernel counts, and who looks on.
_COUNTED = re.compile(
    r"State|PPid|TracerPid|FDSize|Vm(?:Peak|HWM|RSS|PTE|Swap|Size|Data)|Rss\w+|HugetlbPages|SigQ|(?:non)?voluntary_ctxt_switches|NS\w+"
)
#: Fields of stat (proc(5)) that say what a process is: group, session, terminal, priorities, threads, layout, signals.
_STAT = (5, 6, 7, 8, 18, 19, 20, 26, 27, 28, 38, 40, 41, 45, 46, 47, 48, 49, 50, 51)
#: Of fdinfo: numbers that the kernel gives, and what remains of timers.
_GIVEN = re.compile(
    r"^(?:mnt_id|ino|eventfd-id|it_value|ticks):.*\n?|^lock:\t\d+|\b(?:ino|sdev|pos|fhandle-\w+|f_handle):[0-9a-f]+ ?|\(\d+, \d+\)", re.M
)
_OURS = re.compile(r"^anon_inode:\[userfaultfd\]$")
_NUMBERED = re.compile(r"^((?:socket|pipe):)\[\d+\]$|(?<=#)\d+(?= \(deleted\))")
_ERESTART = range(-516, -511)


def process(pid: int) -> dict[str, Any]:
    """What /proc says of a process and of each of its threads; not of its memory (memory.py)."""
    here = Path(f"/proc/{pid}")
    threads = {task.name: _status(task) for task in sorted((here / "task").iterdir())}
    links = {name: str((here / name).readlink()) for name in ("cwd", "root")}
    return {"limits": (here / "limits").read_text(), "stat": _stat(here), "threads": threads, **links, "fds": _descriptors(here)}


def _status(task: Path) -> dict[str, str]:
    pairs = (line.partition(":") for line in (task / "status").read_text().splitlines())
    return {name: value.strip() for name, _, value in pairs if not _COUNTED.fullmatch(name)}


def _stat(here: Path) -> list[str]:
    fields = ["", "", *(here / "stat").read_text().rpartition(")")[2].split()]
    return [fields[number - 1] for number in _STAT]


def _descriptors(here: Path) -> dict[str, tuple[str, str]]:
    """Not the standard streams, which the tests replace, nor the tracker's own."""
    found = {}
    for entry in sorted((here / "fd").iterdir()):
        link = str(entry.readlink())
        if int(entry.name) > 2 and not _OURS.match(link):
            info = _GIVEN.sub("", (here / "fdinfo" / entry.name).read_text())
            found[entry.name] = _NUMBERED.sub(r"\1", link), "\n".join(sorted(info.splitlines()))
    return found


def registers(pid: int) -> dict[str, dict[str, str]]:
    """Thread -> register -> value, as gdb shows them: the general ones, segments, x87, vectors, masks."""
    assert GDB is not None
    words = [GDB, "-nx", "-batch", "-iex", "set debuginfod enabled off", "-iex", "set auto-load off", "-iex", "set sysroot /nowhere"]
    words += ["-p", str(pid), "-ex", "set pagination off", "-ex", "set width 0", "-ex", "thread apply all info all-registers"]
    text = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=True).stdout
    found: dict[str, dict[str, str]] = {}
    for part in re.split(r"^Thread \d+ ", text, flags=re.M)[1:]:
        head, _, body = part.partition("\n")
        number = re.search(r"LWP (\d+)|process (\d+)", head)
        assert number is not None, head
        rows = (line.split(None, 1) for line in body.splitlines() if re.match(r"[a-z]\w* +\S", line))
        found[number[1] or number[2]] = dict(row for row in rows if len(row) == 2)  # type: ignore[misc]
    return found


def same_registers(before: dict[str, dict[str, str]], after: dict[str, dict[str, str]]) -> list[str]:
    """Differences in words. A call that begins again after a stop is known to the kernel alone: there the number of the call and its
    result so far may be told otherwise, nothing else."""
    wrong = [f"threads {sorted(before)} became {sorted(after)}"] if before.keys() != after.keys() else []
    for tid in before.keys() & after.keys():
        here, there = before[tid], after[tid]
        waits = _value(here["rax"]) in _ERESTART and _value(there["rax"]) in _ERESTART
        for name in sorted(here.keys() | there.keys()):
            if here.get(name) != there.get(name) and not (waits and name in ("rax", "orig_rax", "eax", "ax", "al", "ah")):
                wrong.append(f"thread {tid}: {name}: {here.get(name)} became {there.get(name)}")
    return wrong


def _value(text: str) -> int:
    return int(text.split()[-1])
