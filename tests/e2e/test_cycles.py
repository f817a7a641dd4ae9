"""Many lives: each workload is snapshot, killed and restored, again and again; the program's own check passes each time.

In each life the first snapshot is by comparison (nothing is known yet of what was written), the next by write protection, both
compared page by page with what they would give back, and the second is verified. In the end the program goes back in place to a
generation from before it died. `make test` does two lives, `make soak` twenty.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import pytest

from tests.e2e.test_calls import ROOM_AGAIN, over, report
from tests.e2e.test_restore import revive
from tests.harness import SOAK, WORKLOADS, Ckpt, Skipped, Victim, build, did, progress, times
from tests.harness.victim import BIN

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: acts on other processes")
LIVES = times(2, 20)


class Life(Protocol):
    """What is done to a workload; `pid` is the root of its tree."""

    @property
    def pid(self) -> int: ...
    def work(self) -> None: ...
    def verify(self) -> None: ...
    def kill(self) -> None: ...
    def restore(self, ckpt: Ckpt, generation: int) -> Any: ...
    def remember(self) -> None: ...
    def went_back(self) -> None: ...
    def end(self) -> None: ...


class Plain:
    """A victim that speaks the protocol itself. `request`: what it is asked to do before each snapshot."""

    def __init__(self, victim: Victim, request: str = "") -> None:
        self.victim, self.request = victim, request

    @property
    def pid(self) -> int:
        return self.victim.pid

    def work(self) -> None:
        if self.request:
            self.victim.ask(self.request)
        time.sleep(0.05)

    def verify(self) -> None:
        self.victim.verify()
        assert self.victim.untraced()
        assert not self.victim.stands_still()

    def kill(self) -> None:
        self.victim.kill()

    def restore(self, ckpt: Ckpt, generation: int) -> Any:
        return revive(ckpt, self.victim, generation)

    def remember(self) -> None:
        """What follows is undone by went_back()."""

    def went_back(self) -> None: ...

    def end(self) -> None:
        self.victim.end()


class Calls(Plain):
    """What has an end has come to it before the first snapshot; the endless ones wait through all lives and tell at the end."""

    def __init__(self, victim: Victim) -> None:
        super().__init__(victim)
        assert victim.ask("go") == "GONE"
        time.sleep(1.2)

    def verify(self) -> None:
        assert self.victim.untraced()

    def end(self) -> None:
        over(self.victim)

    def went_back(self) -> None:
        assert self.victim.ask("wake") == "WOKEN"
        endless = [said for said in report(self.victim) if said.kind == "endless" and said.name not in ROOM_AGAIN]
        assert len(endless) > 15
        assert [said for said in endless if said.result != said.expected or said.changed != "-"] == []


class Redis(Plain):
    """The server alone dies and comes back; its driver, which knows what it should hold, lives on."""

    def __init__(self, victim: Victim) -> None:
        super().__init__(victim, "write 200")
        self.pidfd = os.pidfd_open(victim.pid)

    def kill(self) -> None:
        self._kill()
        self.victim.ask("collect")

    def restore(self, ckpt: Ckpt, generation: int) -> Any:
        said = ckpt.json("restore", generation)
        assert said["pid"] == self.pid
        self.pidfd = os.pidfd_open(said["pid"])
        return said

    def remember(self) -> None:
        assert self.victim.ask("save") == "OK"

    def went_back(self) -> None:
        assert self.victim.ask("back") == "OK"

    def end(self) -> None:
        self._kill()
        super().end()

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)


def _by_name(name: str, folder: Path) -> Plain:
    return Plain(Victim.start(name, folder))


def _program(*words: str, request: str = "") -> Callable[[Path], Plain]:
    return lambda _folder: Plain(Victim([str(BIN / words[0]), *words[1:]]), request)


def _calls(folder: Path) -> Plain:
    folder.mkdir()
    return Calls(Victim([str(BIN / "calls"), "1000", str(folder)], timeout_s=90))


#: All workloads (tests/workloads/README.md). Not here: asker, which checkpoints itself (test_self.py), and memops, the oracle's tool.
SCENARIOS: dict[str, Callable[[Path], Plain]] = {
    **{name: lambda folder, name=name: _by_name(name, folder) for name in WORKLOADS if name != "redis"},  # type: ignore[misc]
    "redis": lambda folder: Redis(Victim.start("redis", folder)),
    "calls": _calls,
    "deadlines": _program("deadlines"),
    "dirty": _program("dirty", "16", request="dirty 10"),
    "layout": _program("layout", "8", request="churn"),
}


@pytest.fixture
def life(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Plain]:
    build()
    try:
        begun = SCENARIOS[request.param](tmp_path / "victim")
    except Skipped as reason:
        pytest.skip(f"{request.param}: {reason}")
    try:
        yield begun
    finally:
        begun.end()


@pytest.mark.parametrize("life", SCENARIOS, indirect=True)
def test_many_lives(life: Life, ckpt: Ckpt, request: pytest.FixtureRequest) -> None:
    restores: list[float] = []
    for turn in range(LIVES):
        life.work()
        made = ckpt.snapshot(life.pid)
        pid = life.pid
        life.kill()
        number_is_free(pid)
        restores.append(life.restore(ckpt, made["generation"])["total_ms"])
        assert life.pid == pid
        life.verify()
        compared, tracked = snapshots_of_a_new_life(ckpt, life, made)
        if SOAK or turn == LIVES - 1:
            verdict = ckpt.json("verify", tracked["generation"])
            assert verdict["faithful"], verdict["differences"]
            life.verify()
        if turn == 0:
            early = tracked["generation"]
            life.remember()
    go_back(ckpt, life, early, tracked["generation"])
    ckpt.sound()
    name = request.node.callspec.id
    did(f"lives of {name}", LIVES)
    last = {what: (compared["pages"][what], tracked["pages"][what]) for what in ("read", "stored")}
    progress(f"{name}: restore {median(restores):.1f} ms, at most {max(restores):.1f}; last two snapshots: {last}")


def number_is_free(pid: int) -> None:
    """Who was restored is a child of init: its number is free when that has waited for it, which a restore would wait for."""
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)


def snapshots_of_a_new_life(ckpt: Ckpt, life: Life, made: dict[str, Any]) -> Sequence[dict[str, Any]]:
    compared = ckpt.exact(life.pid)
    assert (compared["parent"], compared["lineage"]) == (made["generation"], made["lineage"])
    assert compared["pages"]["deduplicated"] > 0, "what the store has already is not stored again"
    tracked = ckpt.exact(life.pid)
    assert (tracked["kind"], tracked["tracker"]) == ("incremental", "uffd")
    pages = tracked["pages"]
    assert pages["read"] - pages["zero"] <= pages["dirty"] + 64, pages
    return compared, tracked


def go_back(ckpt: Ckpt, life: Life, early: int, last: int) -> None:
    """In place, to a generation of an earlier life; what follows descends from it."""
    done = ckpt.run("rollback", early, "--pid", life.pid, "--json")
    assert done.code == 0, done.err
    life.went_back()
    life.verify()
    assert ckpt.exact(life.pid)["parent"] == early
