"""eBPF programs that watch a process tree, and their loader. Knows processes by number; imports neither ckpt nor native.

A program is src/NAME.bpf.c. BCC compiles it once for each kernel and each version of its text (compiler.py, in a process of its own);
what it made is kept as an image (images.py), and from then on loading one takes a few milliseconds and neither BCC nor LLVM.
Nothing needs kernel headers (headers.py), kprobes or fentry: only raw tracepoints, and struct offsets from the kernel's own BTF.
"""

from bpf.deadlines import Deadlines, Interrupted
from bpf.errors import BpfError
from bpf.lifecycle import Change, Filter, Kind
from bpf.ready import compile_ahead, compiled, given_up, missing, prepare
from bpf.syscalls import Call, Syscalls
from bpf.writes import Write, Writes

__all__ = [
    "BpfError",
    "Call",
    "Change",
    "Deadlines",
    "Filter",
    "Interrupted",
    "Kind",
    "Syscalls",
    "Write",
    "Writes",
    "compile_ahead",
    "compiled",
    "given_up",
    "missing",
    "prepare",
]
