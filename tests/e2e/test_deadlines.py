"""When interrupted waits are to end: by the kernel's own word where eBPF may ask for it, as reckoned where not."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

import bpf
from ckpt.ops.periodic import repeat
from ckpt.ops.snapshot import Request, Result
from ckpt.syscalls import names
from tests.e2e.asked import Asked
from tests.harness import Ckpt, Victim, build
from tests.harness.victim import BIN

pytestmark = pytest.mark.alone

LIMIT_MS = 4000
LATE_MS = 400  #: of a busy machine; how exact the kernel's word is tests/bpf/test_deadlines.py says
NOWHERE = {"CKPT_CACHE_DIR": "/proc/nowhere"}


@pytest.fixture
def waiting() -> Iterator[Victim]:
    build()
    with Victim([str(BIN / "limits")]) as program:
        program.ask(f"begin {LIMIT_MS}")
        yield program


@pytest.fixture
def ready(usable: None) -> None:
    bpf.prepare(("deadlines",))


def threads(ckpt: Ckpt, generation: int) -> dict[str, dict[str, Any]]:
    """Of those with a finite wait: its call -> what `show` says."""
    rows = ckpt.json("show", generation, "--threads")["threads"]
    return {names.name(row["evidence"]["call"]): row for row in rows if row["evidence"]}


def ended(program: Victim) -> dict[str, tuple[int, int, float]]:
    """name -> result, errno, ms."""
    words = program.ask("end", timeout_s=20).split()
    return {words[at]: (int(words[at + 1]), int(words[at + 2]), int(words[at + 3]) / 1e6) for at in range(0, len(words), 4)}


@pytest.mark.usefixtures("ready")
def test_the_kernels_word_is_in_the_generation(ckpt: Ckpt, waiting: Victim) -> None:
    """The record is that of the first stop, when the waits were what the program had begun; later ones keep it."""
    for _ in range(2):
        made = ckpt.snapshot(waiting.pid)
        found = threads(ckpt, made["generation"])
        assert len(found) >= 8
        for call, row in found.items():
            assert "eBPF saw its timer" in row["reason"], f"{call}: {row['reason']}"
            assert row["evidence"]["ebpf"]["tid"] == row["tid"]
            assert 0 < row["remaining_ns"] < LIMIT_MS * 1e6
        shown = ckpt.run("show", made["generation"], "--threads").out
        assert "eBPF saw its timer, which counts jiffies" in " ".join(shown.split())
    for name, (result, error, ms) in ended(waiting).items():
        assert LIMIT_MS <= ms <= LIMIT_MS + LATE_MS, f"{name} took {ms} ms"
        assert (result, error) in ((0, 0), (-1, 11), (-1, 110)), name


def test_without_ebpf_everything_works_and_says_so(ckpt: Ckpt, waiting: Victim) -> None:
    made = ckpt.run("snapshot", waiting.pid, "--json", env=NOWHERE)
    found = threads(ckpt, made.json["generation"])
    for row in found.values():
        assert "eBPF" not in row["reason"]
        assert any(words in row["reason"] for words in ("by its timer", "since it went to sleep")), row["reason"]
        assert "ebpf" not in row["evidence"]
        assert row["evidence"]["no_ebpf"]
    for name, (_result, _error, ms) in ended(waiting).items():
        assert LIMIT_MS <= ms <= LIMIT_MS + LATE_MS, f"{name} took {ms} ms"


HERD = """
ends = socket.socketpair()
ends[0].setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, (3).to_bytes(8, 'little') + bytes(8))
took = []
"""
RECEIVE = """
def receive():
    begun = time.monotonic()
    try:
        found = ends[0].recv(1)
    except BlockingIOError:
        found = None
    took.append((found, time.monotonic() - begun))
"""


@pytest.mark.parametrize("asked_kernel", [True, False])
def test_who_woke_for_nothing_keeps_its_deadline(ckpt: Ckpt, usable: None, asked_kernel: bool) -> None:
    """Of two that wait for one byte one goes back to sleep, after a second of its three. From outside it seems to have begun then."""
    bpf.prepare(("deadlines",))
    program = Asked()
    try:
        program.tell(HERD.strip())
        program.tell(f"exec({RECEIVE!r})")
        program.tell("both = [threading.Thread(target=receive, daemon=True) for _ in '12']; [one.start() for one in both]")
        time.sleep(1)
        program.tell("ends[1].send(b'x')")
        time.sleep(0.2)
        ckpt.run("snapshot", program.pid, "--json", env={} if asked_kernel else NOWHERE)
        program.tell("[one.join(20) for one in both] and None")
        first, second = program.tell("took")
        assert first[0] == b"x"
        assert second[0] is None
        if asked_kernel:
            assert 3 <= second[1] <= 3 + LATE_MS / 1000
        else:
            assert second[1] > 3.5, "it was no case in which the kernel's word is needed"
    finally:
        program.end()


@pytest.mark.usefixtures("ready")
def test_a_restored_program_goes_on_with_what_the_kernel_said(ckpt: Ckpt, waiting: Victim) -> None:
    made = ckpt.snapshot(waiting.pid)
    remaining = threads(ckpt, made["generation"])["poll"]["remaining_ns"] / 1e6
    time.sleep(0.5)
    waiting.kill()
    waiting.revive(lambda words: int(ckpt.json("restore", made["generation"], *words)["pid"]))
    begun = time.monotonic()
    took = ended(waiting)
    assert (time.monotonic() - begun) * 1e3 >= remaining - 100
    assert took["poll"][0] == 0


def test_a_program_without_a_finite_wait_does_not_pay(ckpt: Ckpt, victim: Callable[..., Victim], tmp_path: Path) -> None:
    """Nothing is loaded, compiled or even imported for it."""
    program = victim("waits")
    cache = tmp_path / "cache"
    made = ckpt.run("snapshot", program.pid, "--json", env={"CKPT_CACHE_DIR": str(cache), "PYTHONVERBOSE": "1"})
    assert made.code == 0
    assert "import 'bpf'" not in made.err
    assert not cache.exists()


class Enough(Exception):
    pass


@pytest.mark.usefixtures("ready")
def test_snapshots_on_a_timer_load_it_once(victim: Callable[..., Victim], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sleeps of 20 ms: each snapshot meets new ones."""
    program = victim("threads200")
    loaded: list[bpf.Deadlines] = []
    attached: list[int] = []
    whole, attach = bpf.Deadlines.__init__, bpf.Deadlines.attach

    def load(self: bpf.Deadlines) -> None:
        loaded.append(self)
        whole(self)

    def counted(self: bpf.Deadlines, pids: Iterable[int]) -> None:
        attached.append(len(loaded))
        attach(self, pids)

    shown: list[Result] = []

    def show(result: Result) -> None:
        shown.append(result)
        if len(shown) == 3:
            raise Enough

    monkeypatch.setattr(bpf.Deadlines, "__init__", load)
    monkeypatch.setattr(bpf.Deadlines, "attach", counted)
    monkeypatch.setenv("CKPT_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(Enough):
        repeat(Request(program.pid, tmp_path / "store.db"), 0.2, None, show)
    assert len(loaded) == 1
    assert len(attached) >= 3
    for result in shown[1:]:  # at the first the tracker was armed by a freeze of its own: many wait anew since then
        told = [thread for task in result.snapshot.tasks for thread in task.threads if "ebpf" in thread.syscall.evidence]
        assert len(told) > 100
    program.verify()
