"""A program that does what it is told, one line of Python at a time: what a test wants changed, and what it wants to know."""

from __future__ import annotations

import ast
import sys
from typing import Any

from tests.harness import Victim

SCRIPT = """
import ctypes, fcntl, mmap, os, resource, select, signal, socket, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
names = dict(globals())
print("READY", flush=True)
while line := os.read(0, 65536):
    try:
        try:
            answer = repr(eval(line, names))
        except SyntaxError:
            exec(line, names)
            answer = "None"
    except BaseException as error:
        answer = f"!{error!r}"
    os.write(1, answer.encode() + b"\\n")
"""


class Asked(Victim):
    def __init__(self) -> None:
        super().__init__([sys.executable, "-c", SCRIPT])

    def tell(self, code: str) -> Any:
        """The value of an expression, or None after a statement; raises what it raised, as a string."""
        answer = self.ask(code.replace("\n", "; "))
        if answer.startswith("!"):
            raise AssertionError(f"{code}: {answer[1:]}")
        return ast.literal_eval(answer)
