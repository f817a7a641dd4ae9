"""`python -m ckpt.syscalls.emit`: writes native/src/restart_table.inc, the table as C. A test holds the file to this text."""

from __future__ import annotations

from pathlib import Path

from ckpt.syscalls.table import IORING_ENTER_EXT_ARG, MSG_WAITALL, NO_ARG, ROWS, Row, Timeout

TARGET = Path(__file__).resolve().parents[2] / "native" / "src" / "restart_table.inc"

_HEAD = """\
/* restart_table.inc: made by `python -m ckpt.syscalls.emit` from ckpt/syscalls/table.py. Do not edit.
 *
 * The rows that a decision needs; what every field means stands in table.py, the rules in decide.py. Sorted by nr.
 */
"""
_STRUCT = """\
enum restart_flag {
    RESTART_EINTR = 1, /* -4 is the freeze's own: rax := -514 */
    RESTART_FULL = 2,  /* restarted by the kernel with its whole timeout */
};
struct restart_row {
    int16_t nr;
    uint8_t flags;       /* enum restart_flag, or-ed */
    uint8_t timeout;     /* enum restart_timeout */
    uint8_t timeout_arg; /* 0..5; RESTART_NO_ARG = none */
    uint8_t wanted_arg;  /* the count asked for; RESTART_NO_ARG = never short */
    uint8_t flags_arg;   /* short only where this argument has RESTART_WAITALL; RESTART_NO_ARG = always */
};
"""


def _row(row: Row) -> str:
    flags = " | ".join(name for name, on in (("RESTART_EINTR", row.eintr), ("RESTART_FULL", row.full)) if on) or "0"
    numbers = f"{row.timeout_arg}, {row.wanted_arg}, {row.flags_arg}"
    return f"    {{ {row.nr}, {flags}, RESTART_T_{row.timeout.name}, {numbers} }}, /* {row.name} */\n"


def text() -> str:
    timeouts = "".join(f"    RESTART_T_{form.name} = {form.value},\n" for form in Timeout)
    constants = f"    RESTART_NO_ARG = {NO_ARG},\n    RESTART_WAITALL = {MSG_WAITALL:#x},\n    RESTART_EXT_ARG = {IORING_ENTER_EXT_ARG},\n"
    rows = "".join(_row(row) for row in sorted(ROWS, key=lambda row: row.nr) if row.decides)
    return (
        f"{_HEAD}enum restart_timeout {{\n{timeouts}}};\nenum {{\n{constants}}};\n{_STRUCT}"
        f"static const struct restart_row restart_rows[] = {{\n{rows}}};\n"
    )


if __name__ == "__main__":
    TARGET.write_text(text())
