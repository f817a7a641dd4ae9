"""Bad luck of a restore: what it needs is taken, gone or changed. One line names it and says what to do, and nothing half-made is left."""

from __future__ import annotations

import os
import random
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.e2e.asked import Asked
from tests.e2e.test_restore import revive
from tests.harness import Ckpt, Victim
from tests.harness.ckpt import COMMAND, Outcome
from tests.harness.odd import mount_small, unmount
from tests.harness.victim import PYTHON, children, within

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: acts on other processes")

Start = Callable[..., Victim]
TAKER = str(Path(__file__).parents[1] / "harness/taker.py")
STREAMS = ("--fd", "0=/dev/null", "--fd", "1=/dev/null", "--fd", "2=/dev/null")


def refused(ckpt: Ckpt, code: int, generation: int, *words: str, options: tuple[str, ...] = ()) -> str:
    """One line with these words, this exit code, and nobody is left of what was begun."""
    line = ckpt.run("restore", generation, *STREAMS, *options).refused(code, *words)
    assert ckpt.processes() == set()
    return line


def taken(how: str, number: int) -> Victim:
    return Victim([PYTHON, TAKER, how, str(number)])


# ---- numbers ----

WAYS = {
    "process": "a living process (python3): end it",
    "thread": "by a thread of task {holder} (python3): end task {holder}",
    "group": "the number of a process group (task ",
    "session": "the number of a session (task ",
    "zombie": "zombie (python3) that its parent {holder} has not waited for: end task {holder}",
}


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("whose", ["root", "thread", "child"])
def test_a_number_that_another_has_is_named_with_its_holder(whose: str, how: str, ckpt: Ckpt, victim: Start) -> None:
    target = victim("family" if whose == "child" else "threads4")
    number = {"root": target.pid, "thread": max(target.tids()), "child": max([0, *children(target.pid)])}[whose]
    generation = ckpt.snapshot(target.pid)["generation"]
    target.kill()
    with taken(how, number) as taker:
        words = WAYS[how].format(holder=taker.pid)
        refused(ckpt, 3, generation, str(number), words, "--new-pid", "thread " if whose == "thread" else "pid ")
        assert whose == "root" or not Path(f"/proc/{target.pid}").exists()
    revive(ckpt, target, generation)
    target.verify()


def test_the_program_itself_is_told_from_a_stranger(ckpt: Ckpt, victim: Start) -> None:
    target = victim("counter")
    generation = ckpt.snapshot(target.pid)["generation"]
    refused(ckpt, 3, generation, f"pid {target.pid}", "counter", f"the program of generation {generation} itself", "--replace", "--new-pid")
    target.verify()


def test_nobody_is_ended_for_a_restore_whose_numbers_are_taken(ckpt: Ckpt) -> None:
    """A child has died since, and a stranger has its number: that is found before --replace ends the living one."""
    with Asked() as program:
        program.tell("child = os.fork() or signal.pause()")
        child = program.tell("child")
        generation = ckpt.snapshot(program.pid)["generation"]
        program.tell("[os.kill(child, 9), os.waitpid(child, 0)]")
        for how in ("process", "thread", "group"):
            with taken(how, child):
                refused(ckpt, 3, generation, f"pid {child}", options=("--replace",))
                assert program.tell("6 * 7") == 42


def test_a_rollback_whose_threads_number_is_taken_changes_nothing(ckpt: Ckpt) -> None:
    with Asked() as program:
        program.tell("go = threading.Event(); one = threading.Thread(target=go.wait); one.start()")
        tid = program.tell("one.native_id")
        generation = ckpt.snapshot(program.pid)["generation"]
        program.tell("[go.set(), one.join()]")
        for how in ("process", "thread", "group", "session"):
            with taken(how, tid):
                ckpt.run("rollback", generation).refused(3, f"{tid}", "taken" if how in ("process", "thread") else "still the number")
                assert program.tell("one.is_alive()") is False
                assert not program.stands_still()
        assert ckpt.run("rollback", generation).code == 0
        assert program.tell("one.is_alive()") is True


# ---- files and ports ----

OPENED = (
    "open('file', 'w').write('0123456789'); fd = os.open('file', os.O_RDWR); at = os.lseek(fd, 6, 0); high = os.dup2(fd, 77); os.close(fd)"
)
MAPPED = """made = open("file", "wb").write(b"x" * 8192); fd = os.open("file", os.O_RDWR); libc.mmap.restype = ctypes.c_void_p
at = libc.mmap(None, 8192, 1, {flags}, fd, 0); os.close(fd)"""
AGAIN = "--fd 77=PATH"
FILES = {
    "opened, gone": (OPENED, lambda path: path.unlink(), ("fd 77", "is gone", "put it back", AGAIN)),
    "opened, another": (OPENED, lambda path: another(path), ("fd 77", "another file", "inode", "move the old one back", AGAIN)),
    "opened, shorter": (OPENED, lambda path: os.truncate(path, 3), ("fd 77", "10 bytes then, 3 now", "position 6", "put back", AGAIN)),
    "private, gone": (MAPPED.format(flags=2), lambda path: path.unlink(), ("mapping", "is gone", "put it back")),
    "private, changed": (
        MAPPED.format(flags=2),
        lambda path: os.utime(path),
        ("mapping", "has changed", "written", "put it back as it was"),
    ),
    "shared, shorter": (
        MAPPED.format(flags=1),
        lambda path: os.truncate(path, 4096),
        ("mapping", "shorter", "4096 bytes, it had 8192", "SIGBUS"),
    ),
}


def another(path: Path) -> None:
    path.rename(path.parent / "old")
    path.write_text("0123456789")


@pytest.mark.parametrize("what", FILES)
def test_a_file_that_is_not_what_it_was_is_named_with_what_to_do(what: str, ckpt: Ckpt, tmp_path: Path) -> None:
    setup, spoil, words = FILES[what]
    with Asked() as program:
        program.tell(f"os.chdir({str(tmp_path)!r})")
        program.tell(setup)
        generation = ckpt.snapshot(program.pid)["generation"]
        program.kill()
        spoil(tmp_path / "file")
        refused(ckpt, 3, generation, str(tmp_path / "file"), *words)
        refused(ckpt, 3, generation, str(tmp_path / "file"), *words, options=("--lazy",))
        ckpt.run("verify", generation).refused(3, str(tmp_path / "file"), *words)
        assert not Path(f"/proc/{program.pid}").exists()


def test_a_file_shared_that_is_longer_or_written_is_the_file_of_now(ckpt: Ckpt, tmp_path: Path) -> None:
    with Asked() as program:
        program.tell(f"os.chdir({str(tmp_path)!r})")
        program.tell(MAPPED.format(flags=1))
        generation = ckpt.snapshot(program.pid)["generation"]
        program.kill()
        with (tmp_path / "file").open("r+b") as file:
            file.write(b"y" * 10000)
        revive(ckpt, program, generation)
        assert program.tell("ctypes.string_at(at + 8190, 2)") == b"yy"


@pytest.mark.parametrize("listens", [True, False])
def test_a_port_that_another_has_without_listening_is_named_with_its_holder(listens: bool, ckpt: Ckpt) -> None:
    with Asked() as program:
        program.tell("s = socket.socket(); s.bind(('127.0.0.1', 0))")
        port = program.tell("s.getsockname()[1]")
        program.tell("s.listen()" if listens else "None")
        generation = ckpt.snapshot(program.pid)["generation"]
        program.kill()
        with socket.socket() as other:
            other.bind(("127.0.0.1", port))
            refused(ckpt, 3, generation, f"port {port} is in use by task {os.getpid()}", "end it", "fd ")
        revive(ckpt, program, generation)
        program.tell("s.close()")
        with socket.socket() as other:
            other.bind(("127.0.0.1", port))
            refused(ckpt, 3, generation, f"port {port} is in use by task {os.getpid()}", options=("--replace",))
            assert program.tell("6 * 7") == 42


# ---- users and terminals ----


@pytest.mark.parametrize("options", [(), ("--lazy",)])
def test_a_user_that_nobody_knows(options: tuple[str, ...], ckpt: Ckpt) -> None:
    """No passwd entry, and not root's rights: those that the program is made with are ours until the last moment."""
    with Asked() as program:
        program.tell("large = bytearray(b'x' * (8 << 20)); os.setgroups([54321]); os.setresgid(54320, 54320, 54320)")
        program.tell("os.setresuid(54321, 54321, 54321)")
        generation = ckpt.snapshot(program.pid)["generation"]
        program.kill()
        assert revive(ckpt, program, generation, *options)["warnings"] == []
        assert program.tell("[os.getresuid(), os.getresgid(), os.getgroups()]") == [(54321,) * 3, (54320,) * 3, [54321]]
        assert program.tell("large.count(b'x')") == 8 << 20


def test_a_terminal_of_somebody_else_at_any_number_is_dev_null(ckpt: Ckpt) -> None:
    """It may be gone by then, and its name a stranger's."""
    master, slave = os.openpty()
    with Asked() as program:
        program.tell(f"path = {os.ttyname(slave)!r}; low = os.open(path, os.O_RDWR | os.O_NOCTTY); fd = os.dup2(low, 9); os.close(low)")
        program.tell("child = os.fork() or [os.dup2(os.open(path, os.O_RDWR | os.O_NOCTTY), 11), os.close(3), signal.pause()]")
        child = program.tell("child")
        assert within(10, lambda: {"11"} == set(os.listdir(f"/proc/{child}/fd")) - {"0", "1", "2", "9"})
        generation = ckpt.snapshot(program.pid)["generation"]
        program.kill()
        os.close(slave)
        os.close(master)
        said = revive(ckpt, program, generation)["warnings"]
        assert any("fd 9 of" in text and "/dev/null stands in its place (--fd 9=PATH chooses)" in text for text in said), said
        assert any(
            "fd 11 of" in text and text.endswith(f"/dev/null stands in its place (--fd {child}:11=PATH chooses)") for text in said
        ), said
        assert program.tell("os.readlink('/proc/self/fd/9')") == "/dev/null"
        assert program.tell("os.readlink(f'/proc/{child}/fd/11')") == "/dev/null"
        program.kill()
        revive(ckpt, program, generation, "--fd", "9=/dev/zero")
        assert program.tell("os.read(9, 3)") == bytes(3)


# ---- limits of ckpt's own ----


def limited(ckpt: Ckpt, which: int, pair: tuple[int, int], *words: str | int) -> Outcome:
    command = [*COMMAND, *map(str, words)]
    done = subprocess.run(
        command, env=ckpt.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(which, pair),
    )  # fmt: skip
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("words", [("restore", *STREAMS), ("restore", "--lazy", *STREAMS), ("verify",)])
def test_a_ckpt_that_may_open_few_files(words: tuple[str, ...], ckpt: Ckpt, victim: Start) -> None:
    """A low soft limit is raised, the program has its own; a low hard one is named."""
    target = victim("counter")
    generation = ckpt.snapshot(target.pid)["generation"]
    own = Path(f"/proc/{target.pid}/limits").read_text()
    target.kill()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limited(ckpt, resource.RLIMIT_NOFILE, (64, 64), *words, generation).refused(3, "ckpt itself", "64 open files", "ulimit -Hn")
    assert not Path(f"/proc/{target.pid}").exists()
    assert limited(ckpt, resource.RLIMIT_NOFILE, (64, hard), "verify", generation).code == 0

    def restore(streams: Sequence[str]) -> int:
        lazy = [word for word in words if word == "--lazy"]
        return int(limited(ckpt, resource.RLIMIT_NOFILE, (64, hard), "restore", generation, *lazy, *streams, "--json").json["pid"])

    target.revive(restore)
    target.verify()
    assert Path(f"/proc/{target.pid}/limits").read_text() == own


# ---- what leads out of the tree ----


def test_what_leads_out_is_refused_with_the_number_that_fd_wants(ckpt: Ckpt) -> None:
    """Of the root by its own number, wherever else it is open; what only a child has by the child's."""
    reading, writing = os.pipe()
    path = f"/proc/{os.getpid()}/fd/{writing}"
    with Asked() as program:
        program.tell(f"low = os.open({path!r}, os.O_WRONLY); fd = os.dup2(low, 44); os.close(low)")
        generation = ckpt.snapshot(program.pid)["generation"]
        program.tell("os.close(44)")
        ckpt.run("rollback", generation).refused(3, "fd 44 of", "pipe is held outside", "ckpt restore --replace --fd 44=PATH")
        assert program.tell("6 * 7") == 42
        program.tell(f"child = os.fork() or [os.dup2(os.open({path!r}, os.O_WRONLY), 55), os.close(3), signal.pause()]")
        child = program.tell("child")
        assert within(10, lambda: {"3", "55"} & set(os.listdir(f"/proc/{child}/fd")) == {"55"})
        later = ckpt.snapshot(program.pid)["generation"]
        program.kill()
        refused(ckpt, 3, generation, "fd 44 of", "pipe is held outside", "--fd 44=PATH opens another")
        refused(ckpt, 3, later, f"fd 55 of task {child}", f"--fd {child}:55=PATH opens another")
        ckpt.run("restore", later, "--fd", f"{child}:56=/dev/null").refused(2, f"task {child}", "no descriptor 56")
        ckpt.run("restore", later, "--fd", "1:5=/dev/null").refused(2, "no task 1 ")
        revive(ckpt, program, later, "--fd", f"{child}:55=/dev/zero")
        assert program.tell(f"os.readlink('/proc/{child}/fd/55')") == "/dev/zero"
        program.kill()
        revive(ckpt, program, generation, "--fd", "44=/dev/zero")
        assert program.tell("os.readlink('/proc/self/fd/44')") == "/dev/zero"
    os.close(reading)
    os.close(writing)


# ---- the next snapshot ----


@pytest.mark.parametrize("options", [(), ("--lazy",)])
def test_the_snapshot_after_a_restore_reads_everything_and_says_so(options: tuple[str, ...], ckpt: Ckpt) -> None:
    """It is full by kind, exact, descends from what was restored, and stores only what has changed; then writes are tracked again."""
    with Asked() as program:
        program.tell("large = bytearray(os.urandom(4 << 20))")
        generation = ckpt.snapshot(program.pid)["generation"]
        program.kill()
        revive(ckpt, program, generation, *options)
        assert within(20, lambda: program.tracer() == 0)
        program.tell("large[4096:4100] = b'abcd'")
        full = ckpt.snapshot(program.pid, "--paranoid", "--incremental")
        (warning,) = full["warnings"]
        assert f"nothing has tracked it since generation {generation}" in warning
        assert "everything was read" in warning
        assert (full["kind"], full["parent"], full["paranoid"]["wrong"]) == ("full", generation, 0)
        assert full["pages"]["read"] == full["pages"]["resident"]
        assert full["pages"]["stored"] < full["pages"]["read"] // 4
        again = ckpt.exact(program.pid)
        assert (again["kind"], again["parent"]) == ("incremental", full["generation"])
        kinds = {one["generation"]: one["kind"] for one in ckpt.json("log")["generations"]}
        assert (kinds[full["generation"]], kinds[again["generation"]]) == ("full", "incremental")


# ---- a damaged store ----

BLOCK = 2 << 20


def contents(seed: int) -> bytes:
    return random.Random(seed).randbytes(BLOCK)


def damage(store: Path, seed: int) -> None:
    """In the middle of what is not compressible, so that it stands in the file as it is."""
    raw, piece = store.read_bytes(), contents(seed)[BLOCK // 2 : BLOCK // 2 + 64]
    assert piece in raw
    store.write_bytes(raw.replace(piece, bytes(byte ^ 0x55 for byte in piece)))


@pytest.fixture
def three(ckpt: Ckpt) -> Iterator[tuple[Ckpt, Asked, list[int]]]:
    """Three generations of a program: block 1 is in all, block 2 from the second on, block 3 in the last alone."""
    with Asked() as program:
        program.tell(f"import random; large = bytearray({4 * BLOCK})")
        made = []
        for seed in (1, 2, 3):
            program.tell(f"large[{seed * BLOCK}:{(seed + 1) * BLOCK}] = random.Random({seed}).randbytes({BLOCK})")
            made.append(int(ckpt.snapshot(program.pid)["generation"]))
        yield ckpt, program, made


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_damaged_page_is_named_and_what_still_works(seed: int, three: tuple[Ckpt, Asked, list[int]]) -> None:
    ckpt, program, made = three
    damage(ckpt.store, seed)
    works = f"generation {made[seed - 2]} is the newest of python that can be read whole" if seed > 1 else "no generation of python"
    words = (str(ckpt.store), f"generation {made[-1]}", "page 0x", "fsck", works)
    ckpt.run("verify", made[-1]).refused(5, *words)
    program.tell("large[:] = bytes(len(large))")
    ckpt.run("rollback", made[-1]).refused(5, *words)
    assert program.tell("6 * 7") == 42
    program.kill()
    refused(ckpt, 5, made[-1], *words)
    assert not Path(f"/proc/{program.pid}").exists()
    if seed > 1:
        revive(ckpt, program, made[seed - 2])
        assert program.tell(f"large[{BLOCK}:{2 * BLOCK}] == random.Random(1).randbytes({BLOCK})") is True


def test_a_lazy_restore_that_meets_damage_says_so_when_its_program_has_been_ended(
    three: tuple[Ckpt, Asked, list[int]], tmp_path: Path
) -> None:
    """Its command may have ended long since: the line is on standard error where that is a file or a terminal."""
    ckpt, program, made = three
    program.kill()
    damage(ckpt.store, 3)

    def restore(streams: Sequence[str]) -> int:
        with (tmp_path / "said").open("w") as said:
            words = [*COMMAND, "restore", str(made[-1]), "--lazy", *streams]
            done = subprocess.run(words, env=ckpt.environment, stdout=subprocess.DEVNULL, stderr=said, check=False)
            assert done.returncode in (0, 5)  # a reader ahead may have met it before the answer
            return program.pid

    program.revive(restore)
    assert within(20, lambda: not Path(f"/proc/{program.pid}").exists() and not ckpt.processes())
    (line,) = (tmp_path / "said").read_text().splitlines()
    for word in (f"generation {made[-1]}", "page 0x", f"generation {made[1]} is the newest of python that can be read whole"):
        assert word in line


# ---- no room, no memory ----


@pytest.mark.parametrize("options", [(), ("--lazy",)])
def test_a_full_disk(options: tuple[str, ...], ckpt: Ckpt, tmp_path: Path) -> None:
    """Where the store and TMPDIR are: nothing is written there. Where the run-time folder is: it is named, and nobody is left."""
    folder = tmp_path / "small"
    if not mount_small(folder, "96m"):
        pytest.skip("mounting is not allowed here")
    try:
        there = ckpt.at(folder / "store.db")
        with Asked() as program:
            program.tell("import zlib; large = bytearray(os.urandom(1 << 20) * 64)")
            known = program.tell("zlib.crc32(large)")
            generation = there.snapshot(program.pid)["generation"]
            program.kill()
            (folder / "run").mkdir()
            subprocess.run(["dd", "if=/dev/zero", f"of={folder / 'fill'}", "bs=4k"], capture_output=True, check=False)
            done = there.run("restore", generation, *STREAMS, *options, env={"CKPT_RUNTIME_DIR": str(folder / "run")})
            done.refused(1, str(folder / "run"), "No space left", "CKPT_RUNTIME_DIR")
            assert not Path(f"/proc/{program.pid}").exists()
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(there.environment, "TMPDIR", str(folder))
                revive(there, program, generation, *options)
            assert program.tell("zlib.crc32(large)") == known
    finally:
        unmount(folder)


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group v1 of its own, for its memory limit."""
    folder = Path(f"/sys/fs/cgroup/memory/ckpt-test-{os.getpid()}")
    try:
        folder.mkdir()
        (folder / "memory.limit_in_bytes").write_text(str(1 << 30))
    except OSError as error:
        pytest.skip(f"no control group with a memory limit can be made: {error}")
    yield folder
    assert within(20, lambda: gone(folder))


def gone(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("words", [("restore",), ("restore", "--new-pid"), ("restore", "--lazy"), ("verify",)])
@pytest.mark.parametrize("mib", [35, 120])
def test_a_memory_limit_that_is_met(words: tuple[str, ...], mib: int, ckpt: Ckpt, group: Path) -> None:
    """Below what ckpt itself needs, and below what the program needs: one line and an exit code, or the program, whole or ended."""
    with Asked() as program:
        program.tell(f"[open('{group}/cgroup.procs', 'w').write('0'), len(large := bytearray(b'x' * (200 << 20)))]")
        generation = ckpt.snapshot(program.pid)["generation"]
        program.kill()
        assert within(10, lambda: not (group / "cgroup.procs").read_text())
        (group / "memory.limit_in_bytes").write_text(str(mib << 20))
        enter = f"open('{group}/cgroup.procs', 'w').write('0'); from ckpt.cli.main import main; main()"
        streams = STREAMS if words[0] == "restore" else ()
        command = [sys.executable, "-c", enter, *words, str(generation), *streams]
        done = subprocess.run(
            command, env=ckpt.environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, timeout=120
        )
        if words != ("restore", "--lazy") or done.returncode:
            said_by_each(Outcome(done.returncode, done.stdout, done.stderr))
        assert within(20, lambda: not ckpt.processes() and not (group / "cgroup.procs").read_text())
        assert not Path(f"/proc/{program.pid}").exists()


def said_by_each(outcome: Outcome) -> None:
    """Whoever is killed is told by who waits for it: the server by the worker, the worker by the front. Below what ckpt itself needs the
    kernel may take them one after the other, the front too, which nobody tells."""
    assert outcome.code in (1, -signal.SIGKILL), outcome
    lines = outcome.err.splitlines()
    assert len(lines) <= 2, outcome.err
    assert lines or outcome.killed
    for line in lines:
        assert "no memory was left" in line, line
        assert "try again" in line, line


def test_a_newborn_that_is_killed(ckpt: Ckpt) -> None:
    """As by the kernel for want of memory: it is told, and is not called a process that never was."""
    with Asked() as program:
        program.tell("len(large := bytearray(os.urandom(1 << 20) * 300))")
        generation = ckpt.snapshot(program.pid)["generation"]
        program.kill()
        working = ckpt.start("restore", generation, *STREAMS)
        assert within(30, lambda: resident(program.pid) > 4096)
        os.kill(program.pid, signal.SIGKILL)
        ckpt.finish(working).refused(1, f"task {program.pid}", "was killed before it was whole", "try again")
        assert not Path(f"/proc/{program.pid}").exists()


def resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0
