"""Who has a process number that is wanted, and whether it will soon be free.

A number is taken as long as any task uses it: as its pid or tid, or as the number of its process group or session (the kernel's
struct pid lives on in all of them). A zombie has it until its parent waits; init does that late on some machines (2 s seen).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ckpt.errors import RefusedError
from ckpt.procfs import Stat, parse_stat

INIT = 1
_INIT_WAITS_S, _PARENT_WAITS_S = 10.0, 1.0


@dataclass(frozen=True, slots=True)
class Holder:
    """`text`: "is taken by ..." `remedy`: what frees the number."""

    text: str
    remedy: str
    patience_s: float  #: how long it may take until it is gone: 0 for the living
    task: int = 0


def holders(number: int) -> list[Holder]:
    return list(_held({number}).get(number, ()))


def strangers(numbers: Collection[int], own: Collection[int]) -> Iterator[tuple[int, Holder]]:
    """The living who have one of the numbers and are not of `own`, at one look."""
    for number, found in sorted(_held(numbers).items()):
        yield from ((number, one) for one in found if one.task not in own and not one.patience_s)


def refused(number: int, what: str = "", holder: Holder | None = None) -> RefusedError:
    """Says who has it (`holder`, or who can be seen now). `what`: who wants it, if not a process as its pid."""
    found = [holder] if holder else holders(number)
    one = min(found, key=lambda one: one.patience_s) if found else Holder("is taken", "try again", 0.0)
    who = f"{what}: its number" if what else f"pid {number}:"
    return RefusedError(f"{who} {one.text}: {one.remedy}, or restore with --new-pid or --pid-namespace")


def patience(number: int) -> float:
    """Seconds that it is worth waiting for the number; 0: somebody living has it."""
    return min((one.patience_s for one in holders(number)), default=_INIT_WAITS_S)


def is_dead(number: int) -> bool:
    """Whether it is a zombie's."""
    stat = _stat(Path(f"/proc/{number}/stat"))
    return stat is not None and stat.state in "ZX"


def _held(numbers: Collection[int]) -> dict[int, list[Holder]]:
    found: dict[int, list[Holder]] = {}
    for number in numbers:
        stat = _stat(Path(f"/proc/{number}/stat"))
        if stat is not None:
            found.setdefault(number, []).append(_as_task(number, stat))
    for pid, member in _processes() if numbers else ():
        for number in {member.pgid, member.sid}.intersection(numbers) - {pid}:
            what = "process group" if member.pgid == number else "session"
            text = f"is still the number of a {what} (task {pid}, {member.comm})"
            found.setdefault(number, []).append(Holder(text, f"end task {pid}", _patience(member), pid))
    return found


def _patience(stat: Stat) -> float:
    if stat.state not in "ZX":
        return 0.0
    return _INIT_WAITS_S if stat.ppid == INIT else _PARENT_WAITS_S


def _as_task(number: int, stat: Stat) -> Holder:
    group = _thread_group(number)
    if group not in (0, number):
        return Holder(f"is taken by a thread of task {group} ({stat.comm})", f"end task {group}", 0.0, group)
    if stat.state not in "ZX":
        return Holder(f"is taken by a living process ({stat.comm})", "end it", 0.0, number)
    text = f"is taken by a zombie ({stat.comm}) that its parent {stat.ppid} has not waited for"
    return Holder(text, f"end task {stat.ppid}", _patience(stat), number)


def _thread_group(number: int) -> int:
    """0 when it is gone meanwhile."""
    with suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{number}/status").read_text().splitlines():
            if line.startswith("Tgid:"):
                return int(line.split()[1])
    return 0


def _processes() -> Iterator[tuple[int, Stat]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            stat = _stat(entry / "stat")
            if stat is not None:
                yield int(entry.name), stat


def _stat(path: Path) -> Stat | None:
    try:
        return parse_stat(path.read_bytes())
    except (FileNotFoundError, ProcessLookupError):
        return None
