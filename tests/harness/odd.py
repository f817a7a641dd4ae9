"""Odd targets: a zombie, a traced program, one behind a seccomp filter, a 32-bit one, one with a resource that nobody captures.

Each is a small Python program that is started by Victim and speaks its protocol as far as it can.
"""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

PRELUDE = """
import ctypes, os, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
back = []
def waits(*call):
    \"\"\"A thread in a call that must not return.\"\"\"
    threading.Thread(target=lambda: back.append((libc.syscall(*call), ctypes.get_errno())), daemon=True).start()
    time.sleep(0.05)
"""
WAIT = """
print("READY", *said, flush=True)
for line in sys.stdin:
    print("FAIL it came back: %r" % back if back else "PASS", flush=True)
os._exit(0)
"""

#: said = what READY is followed by: with child=True the first is the pid that ckpt acts on.
SCRIPTS = {
    "zombie": """
child = os.fork()
if child == 0:
    os._exit(0)
while open(f"/proc/{child}/stat").read().rsplit(")", 1)[1].split()[0] != "Z":
    time.sleep(0.001)
said = [child]
""",
    "traced": """
child = os.fork()
if child == 0:
    while True:
        time.sleep(1)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
assert libc.ptrace(0x4206, child, None, None) == 0  # PTRACE_SEIZE
said = [child]
""",
    "io_uring": """
params = ctypes.create_string_buffer(120)
fd = libc.syscall(425, 4, params)
if fd < 0:
    print("SKIP io_uring_setup:", os.strerror(ctypes.get_errno()), flush=True)
    sys.exit(77)
said = [os.getpid(), fd]
waits(426, fd, 0, 1, 1, 0, 0)  # io_uring_enter, for one completion
""",
    "aio": """
context = ctypes.c_ulong(0)
if libc.syscall(206, 4, ctypes.byref(context)) < 0:
    print("SKIP io_setup:", os.strerror(ctypes.get_errno()), flush=True)
    sys.exit(77)
said = [os.getpid()]
waits(208, context, 1, 1, ctypes.create_string_buffer(32), 0)  # io_getevents, for one completion
""",
}

SECCOMP = """
# userfaultfd (323) is answered by EPERM, everything else is allowed; then the program that is named.
import struct
def row(code, jt, jf, k): return struct.pack("HBBI", code, jt, jf, k)
program = row(0x20, 0, 0, 0) + row(0x15, 0, 1, 323) + row(0x06, 0, 0, 0x00050001) + row(0x06, 0, 0, 0x7FFF0000)
text = ctypes.create_string_buffer(program)
class Program(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
filters = Program(4, ctypes.addressof(text))
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(filters), 0, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
"""


def script(name: str) -> list[str]:
    """The command that becomes the odd target of this name."""
    return [sys.executable, "-c", PRELUDE + SCRIPTS[name] + WAIT]


def behind_seccomp(*command: str) -> list[str]:
    return [sys.executable, "-c", PRELUDE + SECCOMP, *command]


def elf32(path: Path) -> Path:
    """A 32-bit static program: writes READY, then reads standard input to its end."""
    code = bytes.fromhex(
        "b804000000 bb01000000 b9SSSSSSSS ba06000000 cd80"  # write(1, "READY\n", 6)
        "b803000000 bb00000000 b9BBBBBBBB ba01000000 cd80"  # read(0, buffer, 1)
        "85c0 7fe6 b801000000 31db cd80".replace("SSSSSSSS", "00900408").replace("BBBBBBBB", "10900408")  # again while > 0; exit(0)
    )
    base, header = 0x08048000, 52 + 2 * 32
    head = b"\x7fELF\x01\x01\x01" + bytes(9) + struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, base + header, 52, 0, 0, 52, 32, 2, 40, 0, 0)
    text = struct.pack("<8I", 1, 0, base, base, header + len(code), header + len(code), 5, 0x1000)
    data = struct.pack("<8I", 1, 0x1000, base + 0x1000, base + 0x1000, 64, 64, 6, 0x1000)
    path.write_bytes((head + text + data + code).ljust(0x1000, b"\0") + b"READY\n".ljust(64, b"\0"))
    path.chmod(0o700)
    return path


def kernel_thread() -> int | None:
    """A kernel thread's pid, or None where none is to be seen (in a container)."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[6]) & 0x200000:
                return int(entry.name)
    return None


def mount_small(folder: Path, size: str) -> bool:
    """A tmpfs of this size; False where mounting is not allowed."""
    folder.mkdir()
    return subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True).returncode == 0


def unmount(folder: Path) -> None:
    subprocess.run(["umount", "-l", str(folder)], check=False)
