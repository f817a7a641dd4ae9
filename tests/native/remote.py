"""What the tests of remote calls share: the victim with its report, and the capture core as Python sees it."""

from __future__ import annotations

import mmap
import os
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from native._native import ffi, lib

HERE = Path(__file__).resolve().parent
REPORT = struct.Struct("68Q")


def build(folder: Path) -> Path:
    program = folder / "remote_victim"
    flags = ["-O1", "-g", "-std=gnu11", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["gcc", *flags, "-o", program, HERE / "remote_victim.c", "-lpthread"], check=True)
    return program


class RemoteVictim:
    """A running remote_victim: rounds it made, what it found wrong."""

    def __init__(self, program: Path, mode: str, folder: Path) -> None:
        self.mode = mode
        self.file = folder / f"report-{mode}-{os.urandom(3).hex()}"
        self.process = subprocess.Popen([program, mode, self.file])
        self.pid = self.process.pid
        wait_until(lambda: self.file.exists() and self.file.stat().st_size >= REPORT.size, "the report")
        with self.file.open("rb") as file:
            self.memory = mmap.mmap(file.fileno(), REPORT.size, prot=mmap.PROT_READ)
        wait_until(lambda: self.report()[3] == 1 and self.report()[0] > 20, "READY")

    def report(self) -> tuple[int, ...]:
        return REPORT.unpack(self.memory[:])

    def rounds(self) -> list[int]:
        """Per thread."""
        return list(self.report()[4:])

    def goes_on(self) -> None:
        """Every thread that has ever made a round makes more, and none finds anything wrong."""
        before = self.rounds()

        def moved() -> bool:
            assert self.process.poll() is None, f"the victim ended: {self.process.returncode}"
            return all(now >= was + 2 for was, now in zip(before, self.rounds(), strict=True) if was)

        wait_until(moved, f"rounds in every thread after {before}")
        _, wrong, detail, _ = self.report()[:4]
        assert not wrong, f"{wrong} wrong, detail {detail}"

    def threads(self) -> list[int]:
        return sorted(int(path.name) for path in Path(f"/proc/{self.pid}/task").iterdir())

    def maps(self) -> list[str]:
        return Path(f"/proc/{self.pid}/maps").read_text().splitlines()

    def descriptors(self) -> dict[int, str]:
        folder = Path(f"/proc/{self.pid}/fd")
        return {int(path.name): os.readlink(path) for path in folder.iterdir()}

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def wait_until(true: Callable[[], bool], what: str, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.002)


def check(result: int, tree: Any) -> int:
    if result < 0:
        fault = ffi.new("struct ckpt_fault *")
        lib.ckpt_tree_last_fault(tree, fault)
        step, name = (ffi.string(text).decode() for text in (fault.step, fault.name))
        raise OSError(-result, f"{step} {name} tid {fault.tid} addr {fault.addr:#x}")
    return result


@contextmanager
def opened(pid: int) -> Iterator[Any]:
    handle = ffi.new("ckpt_tree **")
    error = lib.ckpt_tree_open(pid, 0, handle)
    try:
        check(error, handle[0])
        yield handle[0]
    finally:
        lib.ckpt_tree_close(handle[0])


@contextmanager
def frozen(pid: int) -> Iterator[Any]:
    with opened(pid) as tree:
        check(lib.ckpt_tree_freeze(tree), tree)
        yield tree
        check(lib.ckpt_tree_thaw(tree), tree)


def batch(tree: Any, tid: int, calls: list[tuple[Any, ...]], data: bytes = b"") -> tuple[list[int], bytes, int]:
    """calls: (nr, argument...); an argument is a number, ("ret", i), ("data", offset); a last True = may fail."""
    array = ffi.new("struct ckpt_call[]", len(calls))
    for call, (nr, *arguments) in zip(array, calls, strict=True):
        call.nr = nr
        if arguments and arguments[-1] is True:
            call.may_fail = arguments.pop() is True
        for i, argument in enumerate(arguments):
            form, value = argument if isinstance(argument, tuple) else ("value", argument)
            call.form[i] = {"value": 0, "ret": 1, "data": 2}[form]
            call.arg[i] = value & (2**64 - 1)
    buffer = ffi.new("uint8_t[]", max(1, len(data)))
    ffi.memmove(buffer, data, len(data))
    ran = check(lib.ckpt_remote(tree, tid, array, len(calls), buffer, len(data)), tree)
    return [call.ret for call in array], bytes(ffi.buffer(buffer, len(data))), ran
