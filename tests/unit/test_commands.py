"""The commands of the past, run as a person runs them, over the real store."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ckpt.cli import main as frame
from tests.unit import histories
from tests.unit.here import until

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("commands") / "store.db"
    histories.fill(path)
    return path


@pytest.fixture
def ckpt(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """ckpt(arguments...) -> (exit code, stdout, stderr), over a copy of the store."""
    path = tmp_path / "store.db"
    shutil.copy(template, path)
    monkeypatch.setenv("CKPT_STORE", str(path))

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = frame.run(arguments)
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        assert err.count("\n") <= 1
        return code, out, err

    return run


def answer(ckpt: Run, *arguments: str, code: int = 0) -> Any:
    """The one object that --json prints."""
    got, out, err = ckpt(*arguments, "--json")
    assert (got, bool(err)) == (code, code not in (0, 5)), err
    return json.loads(out)


# ---- log ----


def test_log_newest_first_with_stable_keys(ckpt: Run) -> None:
    generations = answer(ckpt, "log")["generations"]
    assert [item["generation"] for item in generations] == [5, 4, 3, 2, 1]
    assert set(generations[0]) == {
        "generation", "parent", "lineage", "incarnation", "command", "pid", "kind", "tracker", "created_ns", "stop_us", "total_ms",
        "pages", "bytes_stored", "phases", "tags",
    }  # fmt: skip
    assert set(generations[0]["pages"]) == {"resident", "dirty", "read", "zero", "deduplicated", "stored"}
    assert generations[3]["tags"] == ["before-upgrade"]


def test_log_filters(ckpt: Run) -> None:
    assert [item["generation"] for item in answer(ckpt, "log", "--pid", "977")["generations"]] == [4]
    assert [item["generation"] for item in answer(ckpt, "log", "--lineage", "redis-server", "-n", "2")["generations"]] == [5, 3]
    assert ckpt("log", "--pid", "12")[0] == 6


def test_log_for_people(ckpt: Run) -> None:
    code, out, _ = ckpt("log", "--graph")
    assert code == 0
    lines = out.splitlines()
    assert "redis-server" in out
    assert [line.split()[0] for line in lines if line[:1] in ("*", "|")] == ["*", "|", "|/", "*", "*", "*"]
    assert "before-upgrade" in out


# ---- show, diff ----


def test_show(ckpt: Run) -> None:
    found = answer(ckpt, "show", "3")
    assert (found["generation"], found["parent"]) == (3, 2)
    assert [thread["tid"] for thread in found["threads"] if thread["disturbed"]] == [4122]
    assert {"call", "raw_retval", "action", "reason", "registers", "args"} <= set(found["threads"][0])
    assert next(m for m in found["mappings"] if m["name"] == "[heap]")["dirty"] == 2
    assert found["descriptors"][1]["state"] == {"count": 7}


def test_show_for_people(ckpt: Run) -> None:
    code, out, _ = ckpt("show", "redis-server@latest~1", "--threads", "--maps", "--fds")
    assert code == 0
    for text in ("generation 2", "before-upgrade", "poll", "restart", "poll without a time limit", "[heap]", "eventfd", "count=7"):
        assert text in out
    assert "may notice" not in out
    assert "thread 4122 may notice" in ckpt("show", "3")[1]


def test_diff(ckpt: Run) -> None:
    found = answer(ckpt, "diff", "2", "3", "--pages")
    assert {(d["category"], d["change"]) for d in found["differences"]} == {("mapping", "added"), ("descriptor", "added")}
    (heap,) = found["pages"]["mappings"]
    assert (heap["name"], heap["changed"], heap["gone"]) == ("[heap]", 2, 0)
    assert [r["address"] for r in heap["ranges"]] == [(histories.HEAP + 1) * 4096, (histories.HEAP + 7) * 4096]


def test_diff_for_people(ckpt: Run) -> None:
    code, out, _ = ckpt("diff", "2", "3")
    assert code == 0
    assert "+ fd 9 (eventfd)" in out
    assert "2 changed" in out
    assert ckpt("diff", "2", "2")[1].splitlines()[-1] == "no difference"
    assert ckpt("diff", "1", "latest")[1].startswith("1 -> 5")


# ---- tag, rm, gc, fsck ----


def test_tags(ckpt: Run) -> None:
    assert answer(ckpt, "tag") == {"tags": {"before-upgrade": 2}}
    assert answer(ckpt, "tag", "good", "5")["tags"]["good"] == 5
    assert answer(ckpt, "show", "good~1")["generation"] == 2
    assert ckpt("tag", "good", "4")[0] == 2
    assert answer(ckpt, "tag", "good", "4", "--force")["tags"]["good"] == 4
    assert answer(ckpt, "tag", "--delete", "good") == {"tags": {"before-upgrade": 2}}
    assert ckpt("tag", "--delete", "good")[0] == 6
    assert ckpt("tag", "12", "4")[0] == 2
    assert ckpt("tag", "x")[0] == 6  # latest of two lineages


def test_rm(ckpt: Run) -> None:
    assert answer(ckpt, "rm", "1..5", "--dry-run", code=0)["would_remove"] == [1, 2, 3, 5]
    code, _, err = ckpt("rm", "1..5")
    assert (code, "tagged before-upgrade" in err) == (1, True)
    assert answer(ckpt, "rm", "1", "3") == {"removed": [1, 3], "would_remove": []}
    assert [item["generation"] for item in answer(ckpt, "log")["generations"]] == [5, 4, 2]
    assert ckpt("rm", "3")[0] == 6
    assert answer(ckpt, "gc")["bytes_after"] > 0
    found = answer(ckpt, "fsck", "--full")
    assert (found["problems"], found["generations"]) == ([], 3)
    assert answer(ckpt, "diff", "2", "5")["pages"]["changed"] == 2


def test_rm_by_policy(ckpt: Run) -> None:
    assert answer(ckpt, "rm", "--keep", "last=1")["removed"] == [1, 3]
    assert ckpt("rm", "--keep", "last=none")[0] == 2
    assert ckpt("rm")[0] == 2


def test_fsck_finds_damage_and_says_5(ckpt: Run) -> None:
    path = Path(os.environ["CKPT_STORE"])
    data = bytearray(path.read_bytes())
    at = data.find(histories.page("python", 5)[:64])
    assert at > 0, "an incompressible page must stand in the file as it is"
    data[at + 100] ^= 0xFF
    path.write_bytes(data)
    found = answer(ckpt, "fsck", "--full", code=5)
    assert found["problems"]
    code, out, _ = ckpt("fsck", "--full")
    assert (code, "problem" in out) == (5, True)
    repaired = answer(ckpt, "fsck", "--full", "--repair")
    assert (bool(repaired["problems"]), repaired["left"]) == (True, [])
    kept = [item["generation"] for item in answer(ckpt, "log")["generations"]]
    assert {1, 2, 3, 5} <= set(kept), "only python's fourth generation held the damaged page"


# ---- stats, query ----


def test_stats(ckpt: Run) -> None:
    found = answer(ckpt, "stats")
    assert (found["generations"], found["tags"], len(found["lineages"])) == (5, 1, 2)
    assert found["bytes_held"] == 5 * 12 * 4096
    assert found["pages"]["read"] == found["pages"]["zero"] + found["pages"]["deduplicated"] + found["pages"]["stored"]
    assert "compression" in ckpt("stats")[1]


def test_query(ckpt: Run) -> None:
    assert {"growth", "hot-mappings", "page-history", "sharing", "churn"} <= set(answer(ckpt, "query")["queries"])
    assert "page-history" in ckpt("query")[1]
    found = answer(ckpt, "query", "hot-mappings")
    assert found["rows"][0]["mapping"] == "[heap]"
    rows = list(csv.reader(io.StringIO(ckpt("query", "SELECT generation, kind FROM generations ORDER BY 1", "--csv")[1])))
    assert rows[:2] == [["generation", "kind"], ["1", "full"]]
    assert answer(ckpt, "query", "SELECT ? + 1 AS n", "0x10")["rows"] == [{"n": 17}]
    assert ckpt("query", "nosuch")[0] == 6
    assert ckpt("query", "SELECT * FROM nosuch")[0] == 2
    assert ckpt("query", "DELETE FROM tags")[0] == 2
    assert ckpt("query", "page-history")[0] == 2
    code, _, err = ckpt("query", "page-history", hex(histories.HEAP * 4096), "--csv", "--json")
    assert (code, "not both" in err) == (2, True)


def open_files(pid: int) -> set[str]:
    """A program that starts closes one while we look."""
    found = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.add(str(fd.readlink()))
    return found


def test_interrupted_is_one_line_and_130(template: Path) -> None:
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"
    process = subprocess.Popen(
        [sys.executable, "-m", "ckpt.cli.main", "query", endless, "--store", str(template)],
        cwd=Path(frame.__file__).parents[2], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip
    until(lambda: str(template) in open_files(process.pid), "the store to be open")
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "ckpt: interrupted\n")


# ---- stores that cannot be used ----


@pytest.mark.parametrize("command", [["log"], ["show", "1"], ["stats"], ["fsck"], ["gc"], ["tag"], ["rm", "1"], ["query", "SELECT 1 AS x"]])
def test_unusable_stores(ckpt: Run, tmp_path: Path, command: list[str]) -> None:
    missing = tmp_path / "none.db"
    code, out, err = ckpt(*command, "--json", "--store", str(missing))
    assert (code, str(missing) in err, json.loads(out)["error"]["exit_code"]) == (6, True, 6)
    assert not missing.exists()
    other = tmp_path / "other.db"
    other.write_bytes(b"no database " * 1000)
    code, _, err = ckpt(*command, "--store", str(other))
    assert (code, str(other) in err) == (5, True)
    assert ckpt(*command, "--store", str(tmp_path))[0] in (1, 5)
