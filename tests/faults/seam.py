"""Writes the interposer's wrappers from the seam itself: one SEAM(...) line per declaration of native/src/sys.h."""

from __future__ import annotations

import re
import sys
from pathlib import Path

DECLARATION = re.compile(r"^(?P<type>\w[\w ]*?[ *]+)(?P<name>sys_\w+)\((?P<parameters>[^;{}]*?)\)\s*CKPT_SEAM;", re.M | re.S)
#: Which argument the ":VALUE" of a rule is compared with, where it is not the first: the request, the signal, the type.
SELECTOR = {"sys_ioctl": 1, "sys_pidfd_signal": 1, "sys_kcmp": 2}


def wrappers(header: str) -> list[str]:
    lines = []
    for match in DECLARATION.finditer(header):
        parameters = " ".join(match["parameters"].split())
        names = [re.findall(r"\w+", one.split("[")[0])[-1] for one in parameters.split(",")] if parameters != "void" else []
        selector = names[SELECTOR.get(match["name"], 0)] if names else "0"
        lines.append(f"SEAM({match['type'].strip()}, {match['name']}, ({parameters}), ({', '.join(names)}), {selector})")
    return lines


if __name__ == "__main__":
    print("\n".join(wrappers(Path(sys.argv[1]).read_text())))
