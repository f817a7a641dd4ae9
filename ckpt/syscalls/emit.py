"""`python -m ckpt.syscalls.emit`: writes native/src/restart_table.inc, the table as C. A test holds the file to this text."""

from __future__ import annotations

from pathlib import Path

from ckpt.syscalls.int80 import SAME
from ckpt.syscalls.names import name
from ckpt.syscalls.table import ROWS, Row, Timeout

TARGET = Path(__file__).resolve().parents[2] / "native" / "src" / "restart_table.inc"
INT80_TARGET = TARGET.with_name("int80_table.inc")

_HEAD = "/* Made by `python -m ckpt.syscalls.emit` from ckpt/syscalls/table.py: do not edit. Sorted by nr; the fields: restart.h. */\n"
#: native/src/restart.h, enum timeout_form
_FORMS = {
    Timeout.NONE: "TIMEOUT_NONE",
    Timeout.MS: "TIMEOUT_MS",
    Timeout.TIMESPEC: "TIMEOUT_TIMESPEC",
    Timeout.TIMESPEC_ABS: "TIMEOUT_NONE",  # an instant stays where it is, however often the call restarts
    Timeout.TIMEVAL: "TIMEOUT_TIMEVAL",
    Timeout.RCVTIMEO: "TIMEOUT_RECEIVE",
    Timeout.SNDTIMEO: "TIMEOUT_SEND",
    Timeout.EXT_ARG: "TIMEOUT_EXT_ARG",
}


def _row(row: Row) -> str:
    families = (
        ("FAMILY_EINTR", row.eintr),
        ("FAMILY_PARTIAL", row.partial),
        ("FAMILY_FULL", row.full),
        ("FAMILY_BLOCK", row.block),
        ("FAMILY_EXPIRES", row.expired is not None),
    )
    fields = {
        "nr": row.nr,
        "family": " | ".join(name for name, holds in families if holds),
        "timeout_arg": row.timeout_arg,
        "timeout_form": _FORMS[row.timeout],
        "absolute_arg": row.absolute_arg,
        "absolute_bits": hex(row.absolute_bits),
        "expired": row.expired or 0,
        "wanted_arg": row.wanted_arg,
        "flags_arg": row.flags_arg,
        "flags_need": hex(row.flags_need),
        "flags_veto": hex(row.flags_veto),
        "vector": f"VECTOR_{row.vector.name}",
        "last_need": hex(row.last_need),
        "goes_on": f"GOES_ON_{row.goes_on.name}",
    }
    return "{ " + ", ".join(f".{name} = {text}" for name, text in fields.items()) + f" }}, /* {row.name} */\n"


def text() -> str:
    return _HEAD + "".join(_row(row) for row in sorted(ROWS, key=lambda row: row.nr) if row.decides)


def int80_text() -> str:
    head = "/* Made by `python -m ckpt.syscalls.emit` from ckpt/syscalls/int80.py: do not edit. */\n"
    return head + "".join(f"{{ {number}, {same} }}, /* {name(same)} */\n" for number, same in sorted(SAME.items()))


if __name__ == "__main__":
    TARGET.write_text(text())
    INT80_TARGET.write_text(int80_text())
