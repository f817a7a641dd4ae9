"""The wing of the past over the real store: what went in comes back, and every failure has its exit code."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from ckpt.errors import CkptError, DamagedError, NotFoundError, UsageError
from ckpt.history import upkeep
from ckpt.history.canned import bind, canned_queries, find_canned
from ckpt.history.changes import changed_pages
from ckpt.history.open import History, Mode, default_path, open_store, translated
from ckpt.history.runs import pack
from ckpt.history.sql import run_sql
from ckpt.model import PAGE, Content, PageRun
from store import StoreError
from tests.unit import histories
from tests.unit.histories import HEAP, STACK, page


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("history") / "store.db"
    histories.fill(path)
    return path


def test_what_went_in_comes_back(filled: Path) -> None:
    with open_store(filled) as history:
        generation, snapshot = history.load(3)
        assert snapshot == histories.snapshot(3)
        assert (generation.parent, generation.lineage, generation.command, generation.kind) == (
            2,
            histories.REDIS,
            "redis-server",
            "incremental",
        )
        assert generation.pages == {"resident": 12, "dirty": 2, "read": 2, "zero": 0, "deduplicated": 1, "stored": 1}
        source = history.pages(3)
        assert list(source.spaces()) == [0]
        held = {p for run in source.runs(0) for p in range(run.page, run.page + run.count)}
        assert held == set(range(HEAP, HEAP + 8)) | set(range(STACK, STACK + 4))
        assert b"".join(source.read(0, HEAP + 1, 2)) == page("first", 1) + page("first", 2)
        assert b"".join(source.read(0, STACK + 1, 2)) == bytes(2 * PAGE)
        assert b"".join(source.read_runs(0, pack([(HEAP, 1, 0), (HEAP + 7, 1, 0)]))) == page("first", 0) + page(3)
        assert all(isinstance(run, PageRun) and run.content in (Content.DATA, Content.ZERO) for run in source.runs(0))


def test_names_over_the_store(filled: Path) -> None:
    with open_store(filled) as history:
        assert history.resolve("redis-server@latest~1") == 2
        assert history.resolve("before-upgrade") == 2
        assert history.resolve("latest", pid=977) == 4
        with pytest.raises(NotFoundError, match="2 lineages"):
            history.resolve("latest")


def test_changed_pages_by_mapping(filled: Path) -> None:
    with open_store(filled) as history:
        changes = changed_pages(history, 1, history.load(1)[1], 3, history.load(3)[1])
        assert [(c.name, c.changed, c.gone, c.ranges) for c in changes] == [("[heap]", 1, 0, (((HEAP + 7) * PAGE, 1),))]
        back = changed_pages(history, 2, history.load(2)[1], 5, history.load(5)[1])
        assert [c.changed for c in back] == [2]


def test_rows(filled: Path) -> None:
    with open_store(filled) as history:
        rows = {row["name"]: row for row in history.rows("mappings", 5)}
        assert (rows["[heap]"]["pages"], rows["[heap]"]["dirty"]) == (8, 2)
        assert [row["tid"] for row in history.rows("threads", 3) if row["disturbed"]] == [4122]


def test_left_without_commit_nothing_is_there(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    histories.fill(path)

    def abandon(history: History) -> None:
        with history.begin(5) as recording:
            recording.add(0, pack([(HEAP, 1, 0)]), page("lost"))
            raise RuntimeError

    with open_store(path, Mode.WRITE) as history:
        with pytest.raises(RuntimeError):
            abandon(history)
        assert [item.number for item in history.generations()] == [1, 2, 3, 4, 5]


def test_remove_keep_and_check(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    histories.fill(path)
    with open_store(path, Mode.WRITE) as history:
        with pytest.raises(CkptError, match="2 is tagged before-upgrade: nothing was removed"):
            upkeep.remove(history, [1, 2])
        assert upkeep.apply(history, upkeep.parse_policy("last=1")) == [1, 3]
        upkeep.gc(history, lambda what, done, total: None)
        assert [item.number for item in history.generations()] == [2, 4, 5]
        assert b"".join(history.pages(5).read(0, HEAP, 2)) == page("first", 0) + page("c")
        assert upkeep.check(history, full=True, repair=False, progress=lambda what, done, total: None) == []


def test_missing_is_6_and_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=str(tmp_path / "no.db")), open_store(tmp_path / "no.db"):
        pass


def test_not_a_store_is_5(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"not a database at all" * 500)
    with pytest.raises(DamagedError), open_store(tmp_path / "x.db"):
        pass


def test_no_generation_is_6(filled: Path) -> None:
    with pytest.raises(NotFoundError, match="99"), open_store(filled) as history:
        history.load(99)


def test_a_place_where_no_folder_can_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CkptError, match="--store names another place"), open_store(tmp_path / "file" / "x" / "s.db", Mode.CREATE):
        pass


def test_created_for_the_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "store.db"
    with open_store(path, Mode.CREATE):
        pass
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


KINDS = {
    "missing": 6, "not-a-store": 5, "newer": 5, "damaged": 5, "read-only": 4, "locked": 1, "full": 1, "no-generation": 6,
    "io": 1, "tagged": 1, "permission": 4,
}  # fmt: skip


@pytest.mark.parametrize(("kind", "code"), KINDS.items())
def test_every_kind_of_store_error_has_its_code_and_a_next_step(kind: str, code: int) -> None:
    with pytest.raises(CkptError) as caught, translated(Path("/x/store.db")):
        raise StoreError(kind, "what happened")
    assert caught.value.exit_code == code
    text = str(caught.value)
    assert "/x/store.db" in text
    assert "\n" not in text
    assert len(text) > len("/x/store.db: what happened")


def test_default_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKPT_STORE", "/a/b.db")
    assert default_path() == Path("/a/b.db")
    monkeypatch.delenv("CKPT_STORE")
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert default_path() == Path("/state/ckpt/store.db")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert default_path() == Path.home() / ".local/state/ckpt/store.db"


# ---- SQL ----


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM tags",
        "CREATE TABLE x (y)",
        "UPDATE generations SET pid = 1",
        "ATTACH 'other.db' AS other",
        "PRAGMA journal_mode = DELETE",
        "VACUUM INTO '/tmp/copy.db'",
        "SELECT 1; DELETE FROM tags",
        "SELECT load_extension('x')",
        "nonsense from nowhere",
    ],
)
def test_queries_only_read(filled: Path, sql: str) -> None:
    before = filled.read_bytes()
    with pytest.raises(UsageError), open_store(filled) as history:
        run_sql(history, sql)
    assert filled.read_bytes() == before
    assert os.listdir(filled.parent).count("other.db") == 0


def test_a_query_has_a_time_limit(filled: Path) -> None:
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"
    with pytest.raises(CkptError, match=r"longer than 0\.2 s"), open_store(filled) as history:
        run_sql(history, endless, limit_s=0.2)


def test_rows_can_be_cut(filled: Path) -> None:
    with open_store(filled) as history:
        answer = run_sql(history, "SELECT generation FROM generations ORDER BY generation", max_rows=2)
        assert (answer.columns, answer.rows, answer.cut) == (("generation",), [(1,), (2,)], True)


def canned(filled: Path, name: str, *arguments: str) -> list[dict[str, object]]:
    query = find_canned(name)
    with open_store(filled) as history:
        answer = run_sql(history, query.sql, bind(query, arguments))
    return [dict(zip(answer.columns, row, strict=True)) for row in answer.rows]


def test_every_canned_query_runs(filled: Path) -> None:
    queries = canned_queries()
    assert {"growth", "hot-mappings", "page-history", "sharing", "churn", "writers"} <= set(queries)
    for name, query in queries.items():
        needed = ["1" for _, default in query.parameters if default is None]
        canned(filled, name, *needed)
        assert query.description[0].isupper()


def test_growth(filled: Path) -> None:
    rows = [row for row in canned(filled, "growth") if row["command"] == "redis-server"]
    assert [(row["generation"], row["pages"]) for row in rows] == [(1, 12), (2, 12), (3, 12), (5, 12)]


def test_hot_mappings(filled: Path) -> None:
    top = canned(filled, "hot-mappings")[0]
    assert (top["command"], top["mapping"], top["dirty"], top["generations"]) == ("redis-server", "[heap]", 6, 3)


def test_page_history_shows_a_return_to_old_contents(filled: Path) -> None:
    rows = canned(filled, "page-history", hex((HEAP + 1) * PAGE), "pid=4121")
    contents = {row["generation"]: row["content"] for row in rows}
    assert contents[1] == contents[3]
    assert len({contents[1], contents[2], contents[5]}) == 3


def test_page_history_names_the_writer(filled: Path) -> None:
    rows = canned(filled, "page-history", hex((HEAP + 7) * PAGE), "pid=4121")
    assert [(row["generation"], row["writer"], row["tid"], row["call"]) for row in rows] == [
        (1, None, None, None),
        (2, "setCommand", 4121, None),
        (3, "readQuery", 4122, "read"),
        (5, None, None, None),
    ]
    assert str(rows[1]["written"]).startswith("2026-")


def test_writers_by_pages(filled: Path) -> None:
    rows = canned(filled, "writers")
    assert [(row["function"], row["call"], row["pages"], row["percent"], row["generations"], row["threads"]) for row in rows] == [
        ("setCommand", None, 3, 75.0, 2, 1),
        ("readQuery", "read", 1, 25.0, 1, 1),
    ]
    assert {row["file"] for row in rows} == {"/usr/bin/redis-server"}
    assert [row["pages"] for row in canned(filled, "writers", "redis-server", "generation=3")] == [1, 1]
    assert canned(filled, "writers", "python3") == []


def test_sharing_between_programs(filled: Path) -> None:
    rows = canned(filled, "sharing")
    pair = next(row for row in rows if {row["generation"], row["with_generation"]} == {4, 5})
    assert pair["pages"] == 3  # heap pages 0, 2, 3: page 1 has become "c"


def test_churn(filled: Path) -> None:
    rows = [row for row in canned(filled, "churn") if row["command"] == "redis-server"]
    assert {row["address"] for row in rows} == {(HEAP + 1) * PAGE, (HEAP + 7) * PAGE}


def test_parameters() -> None:
    query = find_canned("page-history")
    assert bind(query, ["0x10", "pid=7"])["address"] == 16
    with pytest.raises(UsageError, match="needs address"):
        bind(query, [])
    with pytest.raises(UsageError, match="one too many"):
        bind(query, ["1", "2", "3", "4", "5"])
    with pytest.raises(UsageError, match="address must be a number, in decimal or with 0x in front, not '0xzz'"):
        bind(query, ["0xzz"])
    with pytest.raises(UsageError, match="not '7f0012': 0x7f0012 is one"):
        bind(query, ["7f0012"])
    with pytest.raises(UsageError, match="no parameter adress: it takes ADDRESS"):
        bind(query, ["adress=0x10"])
    assert bind(find_canned("growth"), ["123456789012"])["lineage"] == "123456789012"  # a lineage may be digits alone
    with pytest.raises(NotFoundError, match="there is churn"):
        find_canned("nosuch")
