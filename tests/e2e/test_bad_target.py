"""Bad targets: one clear line, the documented exit code, nothing lost, the target unharmed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.faults import Faults
from tests.harness import Ckpt, Skipped, Victim
from tests.harness.ckpt import COMMAND
from tests.harness.odd import behind_seccomp, elf32, kernel_thread, script
from tests.harness.victim import HERE, build

Start = Callable[..., Victim]
NOBODY = 65534


def odd(name: str, *, child: bool = True) -> Victim:
    try:
        return Victim(script(name), child=child)
    except Skipped as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("command", ["snapshot", "check"])
def test_no_such_process(command: str, ckpt: Ckpt) -> None:
    pid = 4_000_000
    assert not Path(f"/proc/{pid}").exists()
    ckpt.run(command, pid).refused(6, str(pid))
    assert not ckpt.store.exists()


@pytest.mark.parametrize(
    "words",
    [
        ("snapshot", "x"),
        ("snapshot",),
        ("snapshot", "-5"),
        ("snapshot", "1", "--full", "--incremental"),
        ("nonsense",),
        ("query", "page-history", "0xzz"),
    ],
)
def test_usage(words: tuple[str, ...], ckpt: Ckpt) -> None:
    assert ckpt.run(*words).code == 2


def test_kernel_thread(ckpt: Ckpt) -> None:
    pid = kernel_thread()
    if pid is None:
        pytest.skip("no kernel thread is to be seen here")
    ckpt.run("snapshot", pid).refused(3, str(pid), "kernel thread")


def test_zombie(ckpt: Ckpt) -> None:
    with odd("zombie") as target:
        ckpt.run("snapshot", target.pid).refused(3, str(target.pid), "zombie")


def test_traced_by_another(ckpt: Ckpt) -> None:
    with odd("traced") as target:
        ckpt.run("snapshot", target.pid).refused(3, str(target.pid), "traced", str(target.leader))
        ckpt.run("check", target.pid)
        assert target.tracer() == target.leader


@pytest.mark.parametrize(("what", "where"), [("io_uring", "fd "), ("aio", "asynchronous I/O")])
def test_a_resource_that_nobody_captures(what: str, where: str, ckpt: Ckpt) -> None:
    """And a thread that waits in it is not disturbed by the attempt."""
    with odd(what) as target:
        ckpt.run("snapshot", target.pid).refused(3, f"task {target.pid}", where)
        looked = ckpt.run("check", target.pid)  # its answer is the list of refusals: on standard output
        assert looked.code == 3
        assert f"task {target.pid}" in looked.out
        assert where in looked.out
        target.verify()


def test_ckpt_itself_and_its_parents(ckpt: Ckpt) -> None:
    """In a session of its own: if ckpt did stop itself, only that session would hang."""
    itself = 'exec "$@" $$'
    parent = '"$@" $$; exit $?'
    for shell in (itself, parent):
        running = subprocess.Popen(
            ["sh", "-c", shell, "sh", *COMMAND, "snapshot"],
            env=ckpt.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            out, err = running.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)
            running.communicate()
            pytest.fail("ckpt stopped itself or its parent")
        assert running.returncode == 3, err + out
        assert str(running.pid) in err


@pytest.fixture
def theirs() -> Iterator[Path]:
    """Where another user may write. Not below pytest's own folder: each session that begins closes that one to others."""
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, NOBODY, NOBODY)
        yield Path(folder)


def test_another_users_process(ckpt: Ckpt, victim: Start, theirs: Path) -> None:
    target = victim("registers")
    probe = subprocess.run([sys.executable, "-c", "import ckpt.cli.main"], user=NOBODY, env=ckpt.environment, capture_output=True)
    if probe.returncode != 0:
        pytest.skip("another user cannot read the interpreter or the sources here")
    environment = {**ckpt.environment, "CKPT_RUNTIME_DIR": str(theirs / "run"), "CKPT_STORE": str(theirs / "store.db")}
    done = subprocess.run([*COMMAND, "snapshot", str(target.pid)], user=NOBODY, env=environment, capture_output=True, text=True)
    assert done.returncode == 4, done.stderr + done.stdout
    assert str(target.pid) in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    target.verify()
    ckpt.snapshot(target.pid)
    done = subprocess.run([*COMMAND, "log"], user=NOBODY, env=ckpt.environment, capture_output=True, text=True)
    assert (done.returncode, "its owner alone may open it" in done.stderr) == (4, True), done.stderr + done.stdout


#: Run as an ordinary user: the pipes to the victim must be that user's own, so the whole harness runs as that user.
ORDINARY = """
import sys
from pathlib import Path
from tests.harness import Ckpt, Victim
folder = Path(sys.argv[1])
ckpt = Ckpt(folder)
with Victim.start("threads4", folder / "victim") as target:
    first = ckpt.snapshot(target.pid)
    target.verify()
    made = ckpt.exact(target.pid)
    assert made["kind"] == "incremental", made
    assert ckpt.run("check", target.pid).code == 0
    assert ckpt.run("rollback", first["generation"], "--pid", target.pid).code == 0
    target.verify()
    ckpt.exact(target.pid)
ckpt.sound()
print("PASS", made["tracker"])
"""


def test_an_ordinary_users_own_process(ckpt: Ckpt, theirs: Path, tmp_path: Path) -> None:
    """No root, no capability: snapshots and rollback of one's own program work."""
    build()
    who = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    environment = {**ckpt.environment, "PYTHONDONTWRITEBYTECODE": "1"}
    probe = subprocess.run([sys.executable, "-c", "import ckpt.cli.main, tests.harness"], env=environment, capture_output=True, **who)
    if probe.returncode != 0:
        pytest.skip("another user cannot read the interpreter or the sources here")
    said = tmp_path / "said"  # no pipe: the victim would inherit an end of it that is root's
    with said.open("w") as out:
        command = [sys.executable, "-c", ORDINARY, str(theirs)]
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=120, **who)
    assert done.returncode == 0, said.read_text()
    assert said.read_text() == "PASS uffd\n"


def test_a_32_bit_program(ckpt: Ckpt, tmp_path: Path) -> None:
    program = elf32(tmp_path / "small")
    try:
        target = Victim([str(program)])
    except OSError as error:
        pytest.skip(f"this kernel runs no 32-bit programs: {error}")
    with target:
        ckpt.run("snapshot", target.pid).refused(3, str(target.pid), "32-bit")
        assert target.alive()


def test_behind_a_seccomp_filter(ckpt: Ckpt) -> None:
    """Nothing is injected, everything is compared, and it is exact."""
    build()
    with Victim(behind_seccomp(str(HERE / "bin/dirty"), "8")) as target:
        assert "Seccomp:\t2" in Path(f"/proc/{target.pid}/status").read_text()
        for _ in range(3):
            made = ckpt.snapshot(target.pid, "--paranoid")
            assert made["tracker"] == "compare"
            assert made["paranoid"]["wrong"] == 0
            target.ask("dirty 5")
        assert made["pages"]["stored"] < made["pages"]["resident"] // 2
        target.verify()


@pytest.mark.parametrize("phase", ["preflight", "armed", "prepared"])
def test_the_target_is_killed_in_the_middle(phase: str, ckpt: Ckpt, victim: Start, tmp_path: Path) -> None:
    target, other = victim("threads4"), victim("registers")
    ckpt.snapshot(other.pid)
    running = ckpt.start("snapshot", target.pid, faults=Faults(tmp_path, f"{phase}=sleep:1500"))
    time.sleep(0.9)
    target.end()
    done = ckpt.finish(running)
    assert done.code in (1, 3, 6), done
    done.refused(done.code)
    assert len(ckpt.generations()) == 1
    ckpt.sound()
    ckpt.exact(other.pid)


@pytest.mark.parametrize("command", ["exec", "fork"])
@pytest.mark.parametrize("phase", ["armed", "prepared"])
def test_the_target_execs_or_forks_in_the_middle(command: str, phase: str, ckpt: Ckpt, tmp_path: Path) -> None:
    """Either it is captured as it now is, exactly, or it is refused by name; the next snapshot is exact."""
    build()
    with Victim([str(HERE / "bin/memops"), str(tmp_path)]) as target:
        target.ask("map 0 anon 64")
        target.ask("write 0 0 64 1 store")
        ckpt.snapshot(target.pid)
        faults = Faults(tmp_path, f"{phase}=sleep:1500")
        running = ckpt.start("snapshot", target.pid, "--paranoid", "--json", faults=faults)
        deadline = time.monotonic() + 10
        while not faults.fired() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert target.ask(command) in ("OK", "READY")
        done = ckpt.finish(running)
        if done.code:
            done.refused(done.code)
            assert done.code in (1, 3)
        else:
            assert done.json["paranoid"]["wrong"] == 0
        ckpt.exact(target.pid)
        target.verify()
    ckpt.sound()


def test_a_recycled_pid(ckpt: Ckpt, tmp_path: Path) -> None:
    """Another program with the number of the first is a lineage of its own, read whole, and no target for its rollback."""
    build()
    last = Path("/proc/sys/kernel/ns_last_pid")
    with Victim([str(HERE / "bin/dirty"), "4"]) as first:
        pid = first.pid
        one = ckpt.snapshot(pid)
    for _ in range(50):
        try:
            last.write_text(str(pid - 1))
        except OSError as error:
            pytest.skip(f"pids cannot be chosen here: {error}")
        with Victim([str(HERE / "bin/dirty"), "4"]) as second:
            if second.pid != pid:
                continue
            made = ckpt.exact(pid)
            assert made["kind"] == "full"
            assert made["lineage"] != one["lineage"]
            done = ckpt.run("rollback", one["generation"], "--pid", pid)
            assert done.code in (3, 6)
            done.refused(done.code, str(pid))
            second.verify()
            return
    pytest.skip("another process always took the number")


def test_errors_as_json(ckpt: Ckpt) -> None:
    done = ckpt.run("snapshot", 4_000_000, "--json")
    assert done.code == 6
    assert json.loads(done.out)["error"]["exit_code"] == 6


CHILDREN = """
import os, subprocess
print("READY", flush=True)
while True:
    subprocess.run(["/bin/true"])
"""


def test_children_that_come_and_go_all_the_time(ckpt: Ckpt) -> None:
    """A child that ends while the tree is looked at is no reason to say that the process is gone."""
    target = subprocess.Popen([sys.executable, "-c", CHILDREN], stdout=subprocess.PIPE)
    try:
        assert target.stdout is not None
        assert target.stdout.readline() == b"READY\n"
        for _ in range(5):
            ckpt.exact(target.pid)
            assert ckpt.run("check", target.pid).code == 0
        assert target.poll() is None
        ckpt.sound()
    finally:
        target.kill()
        target.wait()
