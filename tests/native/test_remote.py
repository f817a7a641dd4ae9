"""Calls inside a frozen thread: results, what they leave behind (nothing), threads ended and made, arming."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from native._native import ffi, lib
from tests.harness import SOAK, times
from tests.native.remote import RemoteVictim, batch, build, check, frozen, opened

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: acts on other processes")

READ, CLOSE, MMAP, DUP, GETPID, GETPPID, GETCWD, GETTID = 0, 3, 9, 32, 39, 110, 79, 186
EVENTFD2 = 290
MODES = ("registers", "nanosleep", "int80", "epoll", "pause", "masked", "caught", "handlers", "threads")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("remote"))


@pytest.fixture
def start(program: Path, tmp_path: Path) -> Iterator[Callable[[str], RemoteVictim]]:
    victims: list[RemoteVictim] = []

    def run(mode: str) -> RemoteVictim:
        victims.append(RemoteVictim(program, mode, tmp_path))
        return victims[-1]

    yield run
    for victim in victims:
        victim.close()


@pytest.mark.parametrize("mode", MODES)
def test_batches_in_every_thread_leave_no_trace(start: Callable[[str], RemoteVictim], mode: str) -> None:
    victim = start(mode)
    for _ in range(5):
        with frozen(victim.pid) as tree:
            maps = victim.maps()
            for tid in victim.threads():
                results, _, ran = batch(tree, tid, [(GETPID,), (GETTID,), (GETPPID,)])
                assert (results, ran) == ([victim.pid, tid, os.getpid()], 3)
            assert victim.maps() == maps
        victim.goes_on()


def test_forms_of_arguments_data_and_the_first_failure(start: Callable[[str], RemoteVictim]) -> None:
    victim = start("nanosleep")
    before = victim.descriptors()
    with frozen(victim.pid) as tree:
        results, data, ran = batch(
            tree,
            victim.pid,
            [
                (EVENTFD2, 7, 0),
                (DUP, ("ret", 0)),
                (READ, ("ret", 1), ("data", 8), 8),
                (READ, 99999, 0, 0, True),
                (GETCWD, ("data", 16), 200),
                (CLOSE, ("ret", 0)),
                (CLOSE, ("ret", 1)),
                (CLOSE, ("ret", 1)),
                (GETPID,),
            ],
            b"x" * 216,
        )
    assert results[2:4] == [8, -errno.EBADF]
    assert data[:16] == b"x" * 8 + struct.pack("Q", 7)
    assert data[16:].startswith(os.fsencode(os.readlink(f"/proc/{victim.pid}/cwd")) + b"\0")
    assert ran == 8
    assert results[7] == -errno.EBADF
    assert results[8] == 0
    assert victim.descriptors() == before
    victim.goes_on()


def test_a_batch_of_thousands_goes_in_pieces(start: Callable[[str], RemoteVictim]) -> None:
    victim = start("registers")
    with frozen(victim.pid) as tree:
        calls: list[tuple[object, ...]] = [(EVENTFD2, 0, 0)] + [(GETPPID,)] * 2000 + [(CLOSE, ("ret", 0))]
        results, _, ran = batch(tree, victim.pid, calls)
    assert ran == 2002
    assert set(results[1:-1]) == {os.getpid()}
    assert results[-1] == 0
    victim.goes_on()


def test_wrong_forms_are_refused_before_anything_runs(start: Callable[[str], RemoteVictim]) -> None:
    victim = start("registers")
    with frozen(victim.pid) as tree:
        for wrong in (("ret", 0), ("data", 9)):
            with pytest.raises(OSError, match="batch") as caught:
                batch(tree, victim.pid, [(CLOSE, wrong)], b"12345678")
            assert caught.value.errno == errno.EINVAL
    victim.goes_on()


def test_bridge_keeps_away_from_what_is_avoided(start: Callable[[str], RemoteVictim]) -> None:
    victim = start("registers")
    with frozen(victim.pid) as tree:
        avoid = ffi.new("struct ckpt_range[]", [{"start": 0x200000000, "end": 0x7F0000000000}])
        check(lib.ckpt_remote_begin(tree, victim.pid, avoid, 1, 4096), tree)
        new = [int(line.split("-")[0], 16) for line in victim.maps() if " 00:00 0" in line]
        assert any(0x10000000 <= at < 0x200000000 for at in new)
        assert not any(0x200000000 <= at < 0x550000000000 for at in new)
        assert not [line for line in victim.maps() if "rwx" in line]
        assert batch(tree, victim.pid, [(GETPID,)])[0] == [victim.pid]
        check(lib.ckpt_remote_end(tree, victim.pid), tree)
    victim.goes_on()


def test_threads_end_and_come_back_with_number_registers_and_state(start: Callable[[str], RemoteVictim]) -> None:
    victim = start("handlers")
    tids = [tid for tid in victim.threads() if tid != victim.pid][-4:]
    everybody = victim.threads()
    with frozen(victim.pid) as tree:
        state = {}
        for tid in tids:
            regs, xstate, mask = ffi.new("uint64_t[27]"), ffi.new("uint8_t[16384]"), ffi.new("uint64_t *")
            size = check(lib.ckpt_thread_get(tree, tid, regs, xstate, 16384, mask), tree)
            state[tid] = (regs, xstate, size, mask)
        check(lib.ckpt_threads_end(tree, victim.pid, tids, len(tids)), tree)
        assert victim.threads() == [tid for tid in everybody if tid not in tids]
        check(lib.ckpt_threads_spawn(tree, victim.pid, tids, len(tids), ffi.new("int32_t[]", len(tids))), tree)
        assert victim.threads() == everybody
        for tid, (regs, xstate, size, mask) in state.items():
            decision = ffi.new("struct ckpt_decision *")
            lib.ckpt_decide(regs, 0, decision)
            check(lib.ckpt_thread_set(tree, tid, regs, decision, xstate, size, mask), tree)
            assert batch(tree, tid, [(GETTID,)])[0] == [tid]
    victim.goes_on()
    with frozen(victim.pid):
        pass
    victim.goes_on()


def test_pages_are_written_and_read_even_where_the_mapping_forbids_it(start: Callable[[str], RemoteVictim]) -> None:
    victim = start("nanosleep")
    with frozen(victim.pid) as tree:
        results, _, _ = batch(tree, victim.pid, [(MMAP, 0, 6 * 4096, 0, 0x22, -1, 0), (MMAP, 0, 6 * 4096, 3, 0x22, -1, 0)])
        for base in results:
            runs = ffi.new("struct ckpt_run[]", [{"page": base // 4096, "count": 2}, {"page": base // 4096 + 4, "count": 1}])
            wanted = os.urandom(3 * 4096)
            check(lib.ckpt_pages_write(tree, victim.pid, runs, 2, wanted), tree)
            got = ffi.new("uint8_t[]", 3 * 4096)
            check(lib.ckpt_pages_read(tree, victim.pid, runs, 2, got), tree)
            assert bytes(ffi.buffer(got)) == wanted
        gone = ffi.new("struct ckpt_run[]", [{"page": 16, "count": 1}])
        with pytest.raises(OSError, match="read pages"):
            check(lib.ckpt_pages_read(tree, victim.pid, gone, 1, ffi.new("uint8_t[4096]")), tree)
    victim.goes_on()


def test_arming_is_found_again_moves_nothing_and_can_be_undone(start: Callable[[str], RemoteVictim]) -> None:
    victim = start("threads")
    before = victim.descriptors()
    with opened(victim.pid) as tree:
        first, again, lost = (ffi.new("struct ckpt_track *") for _ in range(3))
        check(lib.ckpt_track_arm(tree, victim.pid, -1, 0, first), tree)
        assert first.fresh == 1
        assert set(victim.descriptors()) == {*before, first.remote_fd}
        assert first.remote_fd > max(before) + 10
    with opened(victim.pid) as tree:
        check(lib.ckpt_track_arm(tree, victim.pid, first.remote_fd, first.remote_ino, again), tree)
        assert (again.fresh, again.remote_fd, again.remote_ino) == (0, first.remote_fd, first.remote_ino)
    with opened(victim.pid) as tree:
        check(lib.ckpt_track_arm(tree, victim.pid, -1, 0, lost), tree)
        assert lost.fresh == 1
        assert lost.remote_ino != first.remote_ino
        assert list(victim.descriptors().values()).count("anon_inode:[userfaultfd]") == 1
        check(lib.ckpt_track_disarm(tree, lost), tree)
    assert victim.descriptors() == before
    victim.goes_on()


@pytest.mark.parametrize("mode", ["registers", "threads", "caught"])
def test_questions_are_answered_by_every_thread_and_every_process(start: Callable[[str], RemoteVictim], mode: str) -> None:
    victim = start(mode)
    with opened(victim.pid) as tree:
        sink = ffi.new("ckpt_sink **")
        check(lib.ckpt_sink_new(1 << 20, b"/tmp", sink), tree)
        questions = ffi.new("struct ckpt_question[3]")
        questions[0].nr, questions[0].answer_arg, questions[0].per_thread = GETTID, 7, 1
        questions[1].nr, questions[1].answer_arg, questions[1].answer_size = GETCWD, 0, 300
        questions[1].arg[1] = 300
        questions[2].nr, questions[2].answer_arg, questions[2].answer_size, questions[2].per_thread = 131, 1, 24, 1  # sigaltstack
        options = ffi.new("struct ckpt_capture_options *", {"questions": questions, "question_count": 3})
        options.proc_files = options.thread_files = nothing = ffi.new("char *[1]")
        track = ffi.new("struct ckpt_track[]", [{"pid": victim.pid, "tracker": lib.CKPT_TRACK_NONE, "remote_fd": -1}])
        options.tracks, options.track_count, options.scan_threads = track, 1, 1
        threads, maps = victim.threads(), len(victim.maps())
        check(lib.ckpt_capture(tree, options, sink[0], ffi.new("struct ckpt_timing *")), tree)
        answers = dict(records(sink[0], lib.CKPT_R_ANSWER))
        lib.ckpt_sink_free(sink[0])
        assert nothing
    assert {tid: struct.unpack("q", answers[(0, tid)])[0] for tid in threads} == {tid: tid for tid in threads}
    assert [struct.unpack("qQiQ", answers[(2, tid)][:32])[0] for tid in threads] == [0] * len(threads)
    cwd = os.fsencode(os.readlink(f"/proc/{victim.pid}/cwd"))
    assert answers[(1, 0)][8:].startswith(cwd + b"\0")
    assert len(answers) == 2 * len(threads) + 1
    assert len(victim.maps()) == maps
    victim.goes_on()


def records(sink: object, kind: int) -> Iterator[tuple[tuple[int, int], bytes]]:
    """((question, tid), bytes) of each record of this kind."""
    lent = ffi.new("const uint8_t **")
    stream = bytes(ffi.buffer(lent[0], lib.ckpt_sink_records(sink, lent))) if lib.ckpt_sink_records(sink, lent) else b""
    at = 0
    while at < len(stream):
        found, _, tid, _, index, size = struct.unpack_from("IiiiiI", stream, at)
        if found == kind:
            yield (index, tid), stream[at + 24 : at + 24 + size]
        at += 24 + (size + 7) // 8 * 8


SPAWNS = """
import _thread, sys
def end(): pass
def spawn():
    while True:
        try:
            _thread.start_new_thread(end, ())
        except RuntimeError:
            pass
_thread.start_new_thread(spawn, ())
print("READY", flush=True)
sys.stdin.read()
"""


@pytest.mark.alone  # it uses up numbers of threads so fast that those of a killed program are soon another's
@pytest.mark.timeout(0 if SOAK else 300)
def test_a_look_passes_over_threads_that_are_ending() -> None:
    """An ending thread has no table of descriptors any more: once a look in some hundred called that a table of its own."""
    with subprocess.Popen([sys.executable, "-c", SPAWNS], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == b"READY\n"
        sink, options = ffi.new("ckpt_sink **"), ffi.new("struct ckpt_capture_options *")
        assert lib.ckpt_sink_new(1 << 20, b"/tmp", sink) == 0
        try:
            for _ in range(times(3000, 30000)):
                lib.ckpt_sink_reset(sink[0])
                with opened(victim.pid) as tree:
                    check(lib.ckpt_look(tree, options, sink[0]), tree)
        finally:
            lib.ckpt_sink_free(sink[0])
            victim.kill()
