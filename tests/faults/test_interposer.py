"""The interposer itself: it covers the whole seam, counts, kills where it says, and passes through otherwise."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.faults import LIBRARY, Faults, build, fail_at, kill_at, kill_in
from tests.faults.seam import wrappers

ROOT = Path(__file__).resolve().parents[2]

#: A stand-in for the capture core, loaded as Python loads an extension: RTLD_LOCAL.
PROGRAM = """
import ctypes, os, sys
lib = ctypes.CDLL(sys.argv[1], mode=os.RTLD_LOCAL | os.RTLD_NOW)
lib.play.restype = ctypes.c_int
print("result", lib.play(), flush=True)
"""
CORE = r"""
#include "sys.h"
#include "../ckpt_native.h"
int play(void) {
    int pidfd = sys_pidfd_open(getpid(), 0);
    if (pidfd < 0) return pidfd;
    int error = ckpt_mark("arm");
    if (error < 0) return error;
    for (int i = 0; i < 3; i++) sys_pidfd_signal(pidfd, 0);
    error = ckpt_mark("armed");
    if (error < 0) return error;
    for (int i = 0; i < 3; i++) if ((error = sys_pidfd_signal(pidfd, 0)) < 0) return error;
    return 0;
}
int ckpt_mark(const char *phase) __attribute__((noinline));
"""


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("core")
    (folder / "core.c").write_text(CORE)
    (folder / "mark.c").write_text("int ckpt_mark(const char *phase) { (void)phase; return 0; }\n")
    source = ROOT / "native" / "src"
    files = [folder / "core.c", folder / "mark.c", source / "sys.c"]
    flags = ["-std=gnu11", "-D_GNU_SOURCE", "-shared", "-fPIC", "-O2", f"-I{source}"]
    subprocess.run(["gcc", *flags, *map(str, files), "-o", str(folder / "core.so")], check=True)
    return folder / "core.so"


def play(core: Path, faults: Faults | None) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **(faults.env() if faults else {})}
    return subprocess.run([sys.executable, "-c", PROGRAM, str(core)], env=env, capture_output=True, text=True, timeout=30)


def test_every_function_of_the_seam_is_interposed() -> None:
    header = (ROOT / "native" / "src" / "sys.h").read_text()
    seam = set(re.findall(r"\b(sys_\w+)\(", "".join(part.rsplit(";", 1)[-1] for part in header.split(" CKPT_SEAM;")[:-1])))
    covered = {line.split(",")[1].strip() for line in wrappers(header)}
    assert len(seam) >= 12
    assert seam == covered
    build()
    exported = subprocess.run(["nm", "-D", "--defined-only", str(LIBRARY)], capture_output=True, text=True, check=True).stdout
    assert {"ckpt_mark", *seam} <= {line.split()[-1] for line in exported.splitlines()}


def test_passes_through_and_counts(core: Path, tmp_path: Path) -> None:
    faults = Faults(tmp_path)
    assert play(core, faults).stdout == "result 0\n"
    assert faults.hits() == {"start/sys_pidfd_open": 1, "arm": 1, "arm/sys_pidfd_signal": 3, "armed": 1, "armed/sys_pidfd_signal": 3}
    assert faults.fired() == {}


def test_kills_at_a_mark(core: Path, tmp_path: Path) -> None:
    faults = Faults(tmp_path, kill_at("armed"))
    assert play(core, faults).returncode == -signal.SIGKILL
    assert faults.fired() == {"armed#1=kill": 1}
    assert "armed/sys_pidfd_signal" not in faults.hits()


def test_kills_at_a_call_inside_a_phase(core: Path, tmp_path: Path) -> None:
    faults = Faults(tmp_path, kill_in("armed", 2))
    assert play(core, faults).returncode == -signal.SIGKILL
    assert faults.hits()["arm/sys_pidfd_signal"] == 3
    assert faults.hits()["armed/sys_pidfd_signal"] == 2


def test_fails_a_mark_and_a_call(core: Path, tmp_path: Path) -> None:
    assert play(core, Faults(tmp_path, fail_at("armed", errno.ENOSPC))).stdout == f"result {-errno.ENOSPC}\n"
    assert play(core, Faults(tmp_path, f"sys_pidfd_signal@armed#3=fail:{errno.EPERM}")).stdout == f"result {-errno.EPERM}\n"
    # Only calls with this first argument: the n-th is never reached.
    assert play(core, Faults(tmp_path, "sys_ptrace:16896=kill")).stdout == "result 0\n"


def test_an_after_kill_does_the_call_first(core: Path, tmp_path: Path) -> None:
    faults = Faults(tmp_path, "sys_pidfd_open=after-kill")
    assert play(core, faults).returncode == -signal.SIGKILL
    assert faults.hits() == {"start/sys_pidfd_open": 1}
