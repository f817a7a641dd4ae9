"""May this tree be captured, and would every resource of it survive? Looked at from outside while it runs; nothing is touched.

Each finding is one line that names the resource: `fd 7 of task 4121 (worker): io_uring: not supported`. What appears
between this look and the freeze is found by the parse of the capture, with the same words.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISBLK, S_ISREG

from ckpt.errors import CkptError, NotFoundError, PermissionDeniedError, RefusedError
from ckpt.kinds.base import CautiousKind, FdKind, RawDescriptor, Unsupported, Work, is_a
from ckpt.kinds.fd import sockfilter
from ckpt.kinds.fd.file import unnamed_too_large
from ckpt.kinds.table import table
from ckpt.live import clock, core, freezer, records
from ckpt.live.core import Tree
from ckpt.live.records import RawCapture, RawFd
from ckpt.model import Mapping
from ckpt.procfs import Stat, Status, parse_fdinfo, parse_maps, parse_stat, parse_status

PF_KTHREAD = 0x200000
ELF_32 = 1
HARMLESS = Work.SOCKET | Work.UNIX_DIAG | Work.SEALS | Work.MQUEUE | Work.TTY  #: what may be asked of a running program's descriptors
O_DIRECT = 0o40000
LOOKS = 5  #: a program that closes descriptors all the time is looked at again
#: the features of the tracker's own userfaultfd, as fdinfo tells them (native/src/arm.c, invariant 3): WP_ASYNC, WP_UNPOPULATED,
#: WP_HUGETLBFS_SHMEM, and the kernel's own bit for a handshake that was made
TRACKER_FEATURES = 1 << 15 | 1 << 13 | 1 << 12 | 1 << 31
NEAR_TOP = 16  #: native/src/arm.c: numbers below the table's size where a tracker without a handshake is ours


@dataclass(frozen=True, slots=True)
class Problem:
    pid: int
    refuses: bool  #: False: a warning, the snapshot is taken all the same
    text: str


@dataclass(frozen=True, slots=True)
class Looked:
    """What is known of a task by the time its descriptors are judged."""

    comm: str
    table_size: int  #: of its descriptors


@dataclass(frozen=True, slots=True)
class Passed:
    """A tree that can be captured."""

    warnings: tuple[str, ...]
    direct_io: bool  #: some descriptor has O_DIRECT


def preflight(tree: Tree) -> Passed:
    """Raises the first refusal: RefusedError (3), PermissionDeniedError (4), NotFoundError (6)."""
    seen: list[RawDescriptor] = []
    problems = list(examine(tree, seen))
    refusals = [problem.text for problem in problems if problem.refuses]
    if refusals:
        more = f" (and {len(refusals) - 1} more: ckpt check {tree.pid} lists them)" if len(refusals) > 1 else ""
        raise RefusedError(refusals[0] + more)
    direct = any((S_ISREG(raw.mode) or S_ISBLK(raw.mode)) and parse_fdinfo(raw.fdinfo).flags & O_DIRECT for raw in seen)
    return Passed(tuple(problem.text for problem in problems), direct)


def examine(tree: Tree, seen: list[RawDescriptor] | None = None) -> Iterator[Problem]:
    """Every problem of every task of the tree. `seen` takes in the program's descriptors, for further questions."""
    pids = sorted({thread.pid for thread in tree.threads()}, key=lambda pid: (pid != tree.pid, pid))
    tasks: dict[int, Looked] = {}
    for pid in pids:
        try:
            yield from _task(pid, tasks, root=pid == tree.pid)
        except (FileNotFoundError, ProcessLookupError):
            if pid == tree.pid:
                raise NotFoundError(f"task {pid}: has ended: give the pid of a living process") from None
        except PermissionError:
            raise PermissionDeniedError(f"task {pid}: belongs to another user or may not be traced: run as root") from None
    yield from _clocks(tree.pid, tasks)
    if tasks:
        yield from _freezer(tree, tasks)
        yield from _descriptors(tree, tasks, [] if seen is None else seen)


def _task(pid: int, tasks: dict[int, Looked], *, root: bool) -> Iterator[Problem]:
    folder = Path(f"/proc/{pid}")
    stat, status = parse_stat((folder / "stat").read_bytes()), parse_status((folder / "status").read_bytes())
    if stat.state in "ZX" and not root:
        yield Problem(pid, False, f"task {pid} ({stat.comm}): is a zombie that its parent has not waited for: left out")
        return
    whole = next(_whole(pid, stat, status), None)
    if whole is not None:
        yield Problem(pid, True, whole)
        return
    tasks[pid] = Looked(stat.comm, status.fd_size)
    if status.seccomp:
        yield Problem(pid, False, f"task {pid} ({stat.comm}): has a seccomp filter: nothing is injected, every page is read and compared")
    for mapping in parse_maps((folder / "maps").read_bytes()):
        name = f"mapping {mapping.start:#x} of task {pid} ({stat.comm})"
        if reason := _mapping(mapping):
            yield Problem(pid, True, f"{name}: {reason}")
        elif reason := _too_large(pid, mapping):
            yield Problem(pid, False, f"{name}: {reason}")


def _freezer(tree: Tree, tasks: dict[int, Looked]) -> Iterator[Problem]:
    """Of tasks that somebody has frozen (v2): whether that can stay so."""
    try:
        group = freezer.frozen_group(tree)
    except RefusedError as reason:
        if len(tasks) == len({thread.pid for thread in tree.threads()}):  # else one of them is refused for itself
            yield Problem(tree.pid, True, str(reason))
        return
    if group is not None:
        text = f"is frozen by control group {group.path}: it stays frozen, every page is read and compared"
        yield Problem(tree.pid, False, f"task {tree.pid} ({tasks[tree.pid].comm}): {text}")


def _clocks(root: int, tasks: dict[int, Looked]) -> Iterator[Problem]:
    """Whose clocks are others than the root's."""
    first: dict[str, bytes] = {}
    for pid, looked in tasks.items():
        with suppress(FileNotFoundError, ProcessLookupError):
            files = clock.look(pid)
            first = first or files
            if reason := clock.strange(files, first, root):
                yield Problem(pid, True, f"task {pid} ({looked.comm}): {reason}")


def _whole(pid: int, stat: Stat, status: Status) -> Iterator[str]:
    """Why the task as a whole cannot be captured."""
    name = f"task {pid} ({stat.comm})"
    if stat.flags & PF_KTHREAD:
        yield f"{name}: is a kernel thread: give the pid of a program"
    elif stat.state in "ZX":
        yield f"{name}: is a zombie, its memory is gone: its parent has to wait for it"
    elif pid == os.getpid() or pid in _ancestors():
        yield f"{name}: is ckpt itself or one of its parents: start ckpt from outside that tree"
    elif status.tracer_pid:
        yield f"{name}: is traced by {_tracer(status.tracer_pid)}: end that first"
    elif _elf_class(pid) == ELF_32:
        yield f"{name}: is a 32-bit program: not supported"
    elif status.seccomp == 1:
        yield f"{name}: is in strict seccomp mode: not supported"
    elif (state := freezer.frozen(pid)) is not None and state.version == 1:
        yield freezer.refusal(pid, state)


def _ancestors() -> set[int]:
    pids: set[int] = set()
    pid = os.getppid()
    while pid > 0 and pid not in pids:
        pids.add(pid)
        try:
            pid = parse_stat(Path(f"/proc/{pid}/stat").read_bytes()).ppid
        except (FileNotFoundError, ProcessLookupError):
            break
    return pids


def _tracer(pid: int) -> str:
    try:
        return f"{pid} ({Path(f'/proc/{pid}/comm').read_text().strip()})"
    except OSError:
        return str(pid)


def _elf_class(pid: int) -> int:
    descriptor = os.open(f"/proc/{pid}/exe", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(descriptor, 5, 0)[4]
    finally:
        os.close(descriptor)


def _mapping(mapping: Mapping) -> str | None:
    path = mapping.backing.path or mapping.name
    if path.startswith("/[aio]"):
        return "asynchronous I/O context: not supported"
    if path.startswith("anon_inode:"):
        return f"{path.removeprefix('anon_inode:').strip('[]')}: not supported"
    if path.startswith("/secretmem"):
        return "memfd_secret: not supported"
    if path.startswith(("/dev/", "socket:")) and not path.startswith(("/dev/zero", "/dev/shm/", "/dev/null")):
        return f"device memory of {path}: not supported"
    return None


def _too_large(pid: int, mapping: Mapping) -> str | None:
    """Of a deleted file that is mapped: why it cannot be restored (native/src/objects.c, invariant 4)."""
    if not mapping.backing.deleted or mapping.backing.kind != "file":
        return None
    try:
        found = os.stat(f"/proc/{pid}/map_files/{mapping.start:x}-{mapping.end:x}")
    except OSError:
        return None
    on_disk = os.major(found.st_dev) != 0
    return unnamed_too_large(mapping.backing.path, found.st_size) if found.st_nlink == 0 and on_disk else None


def _descriptors(tree: Tree, tasks: dict[int, Looked], seen: list[RawDescriptor]) -> Iterator[Problem]:
    for process in _look(tree).processes.values():
        task = tasks.get(process.pid)
        if task is None:
            continue
        for fd in process.fds.values():
            raw = raw_descriptor(fd)
            if "flags:" not in raw.fdinfo or is_tracker(raw, task.table_size):
                continue  # closed between two looks of ours, or ours
            seen.append(raw)
            try:
                if (text := caution(raw)) is not None:
                    yield Problem(process.pid, False, refusal(fd.fd, process.pid, task.comm, text))
                _may_be_opened(raw)
                judge(raw)
            except Unsupported as reason:
                yield Problem(process.pid, True, refusal(fd.fd, process.pid, task.comm, str(reason)))


def _may_be_opened(raw: RawDescriptor) -> None:
    """A pipe is opened anew to look into it, and it belongs to whoever made it: perhaps not to the user of its program (su, sudo)."""
    path = f"/proc/{raw.pid}/fd/{raw.fd}"
    if raw.link.startswith("pipe:[") and not os.access(path, os.R_OK) and os.path.lexists(path):  # else it is gone meanwhile
        raise Unsupported(f"{raw.link}: another user has made it: run as root")


def judge(raw: RawDescriptor) -> None:
    """Raises Unsupported if this descriptor could not be captured, as far as can be told without disturbing it."""
    kind = recognise(raw)
    if kind is None:
        raise Unsupported(f"{raw.link}: not supported")
    if Work.SOCKET in raw.work:
        kind.parse(raw)
        sockfilter.refuse(raw)
    elif (check := getattr(kind, "check", None)) is not None:
        check(raw)


def caution(raw: RawDescriptor) -> str | None:
    """What a snapshot of this descriptor will not hold, if anything."""
    kind = recognise(raw)
    return kind.caution(raw) if is_a(kind, CautiousKind) else None


def refusal(fd: int, pid: int, comm: str, reason: str) -> str:
    return f"fd {fd} of task {pid} ({comm}): {reason}"


def is_tracker(raw: RawDescriptor, table_size: int) -> bool:
    """A userfaultfd that ckpt left in the target: arming uses it again, or closes it. A program's own has other features.

    One without any (a ckpt died before its handshake) only where arming puts it: near the top of the descriptor table.
    """
    api = raw.fdinfo.partition("API:\taa:")[2].partition(":")[0]
    if raw.link != "anon_inode:[userfaultfd]" or not api:
        return False
    features = int(api, 16)
    return features == TRACKER_FEATURES or (features == 0 and raw.fd >= table_size - NEAR_TOP)


def recognise(raw: RawDescriptor) -> FdKind | None:
    return next((kind for kind in table().fd_kinds if kind.recognises(raw)), None)


def _look(tree: Tree) -> RawCapture:
    """Every descriptor of the tree, with the answers that can be had while it runs."""
    wants = [
        core.WantRow(row.format, row.prefix, int(row.work & HARMLESS), [(o.level, o.name, o.size, o.domain, o.type) for o in row.options])
        for row in table().wants
    ]
    options = core.CaptureOptions(proc_files=(), thread_files=(), wants=wants, questions=(), tracks=())
    with core.Sink(1, None) as sink:
        for attempt in range(LOOKS):
            sink.reset()
            try:
                tree.look(options, sink)
                break
            except CkptError:
                if attempt == LOOKS - 1 or not Path(f"/proc/{tree.pid}").exists():
                    raise
        return records.decode(sink.records(), (), ())


def raw_descriptor(fd: RawFd) -> RawDescriptor:
    dev, ino, rdev, size, nlink, mode, identity, _duplicate, _pad = fd.head
    return RawDescriptor(fd.pid, fd.fd, dev, ino, rdev, size, nlink, mode, identity, fd.link, fd.fdinfo, fd.work, fd.options)


def command_name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "?"
