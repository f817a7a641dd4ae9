"""Whatever the core reports, the line says what failed, on which resource, and what to do."""

from __future__ import annotations

import errno

import pytest

from ckpt.errors import CkptError, NotFoundError, PermissionDeniedError, RefusedError
from ckpt.live.fault import Fault, raise_fault
from ckpt.live.records import Texts

NOTHING = Fault(0, 0, 0, -1, 0, "", "")


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOMEM, errno.EPERM, errno.ESRCH, errno.EBUSY])
def test_a_failure_that_recorded_nothing_has_words(code: int) -> None:
    with pytest.raises(CkptError) as caught:
        raise_fault(NOTHING, -code, "thaw", 41)
    assert str(caught.value).startswith("task 41: thaw: ")
    assert len(str(caught.value).split(": ")) >= 4


def test_the_fault_names_the_resource() -> None:
    with pytest.raises(CkptError, match=r"^task 41 thread 43 fd 7 at 0x1000: descriptor socket: Input/output error: try again"):
        raise_fault(Fault(-errno.EIO, 41, 43, 7, 0x1000, "descriptor", "socket"), -errno.EIO, "capture", 40)


def test_a_fault_without_a_process_is_of_the_root() -> None:
    with pytest.raises(CkptError, match=r"^task 40 thread 43: inject: "):
        raise_fault(Fault(-errno.EIO, 0, 43, -1, 0, "inject", ""), -errno.EIO, "capture", 40)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault(-errno.EPERM, 41, 41, -1, 0, "traced", "77"), RefusedError),
        (Fault(-errno.EOPNOTSUPP, 41, 41, -1, 0, "32-bit", ""), RefusedError),
        (Fault(-errno.EPERM, 41, 0, -1, 0, "attach", ""), PermissionDeniedError),
        (Fault(-errno.ESRCH, 41, 0, -1, 0, "open", ""), NotFoundError),
    ],
)
def test_exit_codes(fault: Fault, kind: type[CkptError]) -> None:
    with pytest.raises(kind, match="task 41"):
        raise_fault(fault, fault.error, "open", 41)


@pytest.mark.parametrize(("uid", "advice"), [(0, "not even root may"), (1000, "run as root")])
def test_who_may_not_is_told_what_to_do(uid: int, advice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: uid)
    with pytest.raises(PermissionDeniedError, match=advice):
        raise_fault(Fault(-errno.EPERM, 41, 0, -1, 0, "attach", ""), -errno.EPERM, "open", 41)


def test_what_no_checkpoint_is_made_of_is_told_in_the_words_of_the_preflight() -> None:
    with pytest.raises(RefusedError, match=r"^task 2 \(kthreadd\): is a kernel thread: give the pid of a program$"):
        raise_fault(Fault(-errno.EPERM, 2, 2, -1, 0, "kernel thread", ""), -errno.EPERM, "open", 2)


def test_a_file_that_proc_did_not_show() -> None:
    files = Texts("task 41")
    files["stat"] = b"x"
    assert files["stat"] == b"x"
    with pytest.raises(CkptError, match=r"^task 41: /proc showed no maps while it was stopped: nothing was kept; try again$"):
        files["maps"]
