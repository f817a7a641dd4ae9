"""The command line of ckpt, as a person and a script run it: a process, its exit code, one JSON object or one line."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.faults import Faults
from tests.harness.zygote import Zygote, defaults

ROOT = Path(__file__).resolve().parents[2]
BY_EXEC = 10  #: one command in so many is a fresh interpreter in the tests, too
ZYGOTE = Zygote()
COMMAND = (sys.executable, "-c", "import sys; from ckpt.cli.main import main; sys.exit(main())")


@dataclass(frozen=True)
class Outcome:
    code: int  #: exit code; -9 = killed
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, f"exit {self.code}: {self.err or self.out}"
        return json.loads(self.out)

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL

    def refused(self, code: int, *words: str) -> str:
        """Asserts the documented exit code and exactly one line of error that names each of the words. Gives the line."""
        text = self.err.strip()
        assert "Traceback" not in self.err + self.out, f"a traceback is a bug:\n{self.err}{self.out}"
        assert "a bug in ckpt" not in text, text
        assert self.code == code, f"exit {self.code}, not {code}: {self.err}{self.out}"
        assert text, f"exit {code} without a line on standard error"
        assert len(text.splitlines()) == 1, f"more than one line:\n{text}"
        for word in words:
            assert word.lower() in text.lower(), f"{word!r} is not named: {text}"
        return text


class Ckpt:
    """ckpt with a store and a run-time folder of its own."""

    runs = 0
    forks = False  #: commands come from a loaded interpreter (zygote.py): in the tests; a bench measures what users run

    def __init__(self, folder: Path, store: Path | None = None) -> None:
        self.folder = folder
        self.store = store or folder / "store.db"
        self.runtime = folder / "run"
        self.environment = {
            **os.environ,
            "CKPT_STORE": str(self.store),
            "CKPT_RUNTIME_DIR": str(self.runtime),
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "400",
            "NO_COLOR": "1",
        }

    def at(self, store: Path) -> Ckpt:
        """The same, with another store: records and locks of targets are shared."""
        return Ckpt(self.folder, store)

    def start(
        self,
        *words: str | int | Path,
        faults: Faults | None = None,
        env: Mapping[str, str] | None = None,
        ignored: Sequence[signal.Signals] = (),
    ) -> subprocess.Popen[str]:
        """`ignored`: signals, as nohup and a shell's background do; all others have their default, whoever runs the tests."""

        def dispositions() -> None:
            defaults()
            for number in ignored:
                signal.signal(number, signal.SIG_IGN)

        return subprocess.Popen(
            [*COMMAND, *map(str, words)],
            env={**self.environment, **(faults.env() if faults else {}), **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=dispositions,
        )

    def finish(self, process: subprocess.Popen[str], timeout_s: float = 120.0) -> Outcome:
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(f"ckpt hangs: {err}{out}") from None
        return Outcome(process.returncode, out, err)

    def run(
        self, *words: str | int | Path, faults: Faults | None = None, env: Mapping[str, str] | None = None, timeout_s: float = 120.0
    ) -> Outcome:
        Ckpt.runs += 1
        if not Ckpt.forks or Ckpt.runs % BY_EXEC == 0 or not ZYGOTE.free():
            return self.finish(self.start(*words, faults=faults, env=env), timeout_s)
        out, err = (self.folder / f"{name}-{os.urandom(4).hex()}" for name in ("out", "err"))
        environment = {**self.environment, **(faults.env() if faults else {}), **(env or {})}
        code = ZYGOTE.run([str(word) for word in words], environment, out, err, timeout_s)
        assert code is not None, f"ckpt hangs: {err.read_text()}{out.read_text()}"
        outcome = Outcome(code, out.read_text(), err.read_text())
        out.unlink()
        err.unlink()
        return outcome

    def json(self, *words: str | int | Path, faults: Faults | None = None) -> Any:
        return self.run(*words, "--json", faults=faults).json

    def processes(self, name: str = "", word: str = "") -> set[int]:
        """Those that this ckpt has started and that live, servers and keepers too: with this comm, with this word on their command line."""
        found = set()
        for entry in Path("/proc").iterdir():
            with suppress(OSError, ValueError):
                comm, words = (entry / "comm").read_text().strip(), (entry / "cmdline").read_bytes().split(b"\0")
                wanted = name in ("", comm) and (not word or word.encode() in words)
                if wanted and str(self.runtime).encode() in (entry / "environ").read_bytes():
                    found.add(int(entry.name))
        return found

    # ---- what the tests do most ----

    def snapshot(self, pid: int, *words: str, faults: Faults | None = None) -> dict[str, Any]:
        """One that can be gone back to: where an answer of the kernel lay unread in a netlink socket another one is taken."""
        for _ in range(1 if "--kill" in words else 20):
            made = self.json("snapshot", pid, *words, faults=faults)
            if not any("lie unread" in warning for warning in made["warnings"]):
                break
        pages = made["pages"]
        assert pages["read"] == pages["zero"] + pages["deduplicated"] + pages["stored"], pages
        return dict(made)

    def exact(self, pid: int) -> dict[str, Any]:
        """An incremental snapshot that compares, in the same freeze, every page with what the generation gives back."""
        made = self.snapshot(pid, "--incremental", "--paranoid")
        assert made["paranoid"]["wrong"] == 0, made
        assert made["paranoid"]["compared"] > 0, made
        return made

    def generations(self) -> list[int]:
        return sorted(one["number"] if "number" in one else one["generation"] for one in self.json("log")["generations"])

    def taken(self) -> int:
        """Generations so far, asked of the file itself while another ckpt writes it."""
        try:
            with closing(sqlite3.connect(f"file:{self.store}?mode=ro", uri=True)) as store:
                return int(store.execute("select count(*) from generations").fetchone()[0])
        except sqlite3.OperationalError:
            return 0  # not made yet

    def sound(self) -> None:
        """The store passes every check."""
        done = self.run("fsck", "--full", "--json")
        assert done.code == 0, f"fsck --full: exit {done.code}: {done.err}{done.out}"
        assert json.loads(done.out)["problems"] == []
