"""What unit tests of kinds share: a descriptor or a task as C would hand it over, and a reader of remote calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ckpt.kinds.base import Answer, RawDescriptor, RawTask
from ckpt.model import Arg, RemoteCall
from ckpt.syscalls.names import name


def raw_fd(
    link: str,
    fdinfo: str = "",
    *,
    flags: int = 0o2,
    pos: int = 0,
    fd: int = 5,
    file: int = 40,
    mode: int = 0,
    ino: int = 1038,
    rdev: int = 0,
    size: int = 0,
    nlink: int = 1,
    dev: int = 15,
    work: Mapping[int, bytes] | None = None,
    options: Mapping[int, bytes] | None = None,
) -> RawDescriptor:
    text = f"pos:\t{pos}\nflags:\t0{flags:o}\nmnt_id:\t17\nino:\t{ino}\n{fdinfo}"
    return RawDescriptor(100, fd, dev, ino, rdev, size, nlink, mode, file, link, text, dict(work or {}), dict(options or {}))


def raw_task(
    files: Mapping[str, bytes] | None = None,
    answers: Sequence[tuple[int, bytes]] = (),
    *,
    limits: tuple[tuple[int, int], ...] = (),
    extra: Mapping[str, bytes] | None = None,
) -> RawTask:
    return RawTask(100, 100, dict(files or {}), [Answer(*answer) for answer in answers], limits, dict(extra or {}))


def told(calls: Sequence[RemoteCall]) -> list[tuple[object, ...]]:
    """Calls as tuples: name, then values; `("#", i)` for the result of call i; bytes for buffers."""

    def arg(item: object) -> object:
        form, number, data = item.form, item.value, item.data  # type: ignore[attr-defined]
        return data if form is Arg.BUFFER else ("#", number) if form is Arg.RESULT else number

    for index, call in enumerate(calls):
        for item in call.args:
            assert item.form is not Arg.RESULT or item.value < index, f"call {index} uses a result that is not there yet"
        assert call.note, "a call without a note cannot be shown"
    return [(name(call.nr), *(arg(item) for item in call.args)) for call in calls]
