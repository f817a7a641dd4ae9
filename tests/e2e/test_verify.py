"""verify: a faithful restore passes, and each captured field that came back otherwise would fail it."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from ckpt.compare import unfaithful
from ckpt.history.open import Mode, open_store
from ckpt.model import Snapshot
from tests.harness import WORKLOADS, Ckpt, Victim

Start = Callable[..., Victim]


@pytest.mark.parametrize("name", [name for name in WORKLOADS if name != "redis"])
def test_every_workload_comes_back_as_it_was(name: str, ckpt: Ckpt, victim: Start) -> None:
    """Beside the living original, which notices nothing; and nothing is left of it."""
    target = victim(name)
    made = ckpt.snapshot(target.pid)
    done = ckpt.run("verify", made["generation"], "--json")
    verdict = json.loads(done.out)
    assert verdict["differences"] == []
    assert verdict["faithful"]
    assert done.code == 0
    assert verdict["pages"] > 0
    target.verify()
    assert ckpt.processes(name="ckpt-init") == set()
    ckpt.sound()


# ---- each field in turn ----


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where every plain value of a snapshot stands: names of fields, positions, keys."""
    if is_dataclass(value):
        for item in fields(value):
            yield from leaves(getattr(value, item.name), (*path, item.name))
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, tuple | list):
        for index, inner in enumerate(value):
            yield from leaves(inner, (*path, index))
    else:
        yield path


def changed(value: Any, path: tuple[Any, ...]) -> Any:
    """The same with one plain value changed."""
    if not path:
        return flipped(value)
    if path == ("flags",) and is_dataclass(value):
        return replace(value, flags=value.flags ^ 1)  # of a kernel's mapping only what maps shows is known
    head, rest = path[0], path[1:]
    if is_dataclass(value):
        return replace(value, **{head: changed(getattr(value, head), rest)})  # type: ignore[type-var]
    if isinstance(value, Mapping):
        return {**value, head: changed(value[head], rest)}
    return type(value)(changed(item, rest) if index == head else item for index, item in enumerate(value))


def flipped(value: Any) -> Any:
    if isinstance(value, Enum):
        return next(other for other in type(value) if other is not value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value ^ 0x40000000000
    if isinstance(value, bytes):
        return value[:-1] + bytes([value[-1] ^ 1]) if value else b"\1"
    if isinstance(value, str):
        return "0" + value
    return 1  # of None


#: What no comparison can or should see, by the names on the way there: the one list, with the reason of each.
UNSEEN: Mapping[str, str] = {
    r"^(root|taken_at|features)\b": "says which capture it is, and on which machine",
    r"\bstart_ticks$": "it is a new process",
    r"^tasks \d+ (mm|.* space)$|^objects \d+": "numbers of spaces; objects are compared by their pages",
    r"^files \d+ id$|^tasks \d+ descriptors \d+ file$": "names of open files: what shares one is compared",
    r"\bsyscall (remaining_ns|evidence.*)$": "what was known of the call, not what the program sees",
    r"\bdecision (value|reason|disturbed)$": "how the call is told to go on: its registers are compared",
    r"^files \d+ state (dev|cookie|ino|name_ino)$": "the kernel numbers what it makes; a lone end shares it with nobody",
    r"^files \d+ state (consumed|written)$": "a connection that is made again counts its bytes from none",
    r"^files \d+ state size$": "a file's contents are the file system's",
}


def unseen(snapshot: Snapshot, path: tuple[Any, ...]) -> bool:
    text = " ".join(map(str, path))
    if any(re.search(pattern, text) for pattern in UNSEEN):
        return True
    task = snapshot.tasks[path[1]] if path[0] == "tasks" else None
    if task is None:
        return False
    if path[2] == "ppid":
        return task.pid == snapshot.root.pid  # its parent is not of the tree
    if path[2] != "mappings":
        return False
    mapping = task.mappings[path[3]]
    if path[4] == "advice":
        return mapping.advice is None  # not known: the kernel's own, or changed while it was looked at
    backing = [(other.backing.dev, other.backing.ino) for one in snapshot.tasks for other in one.mappings]
    alone = backing.count((mapping.backing.dev, mapping.backing.ino)) == 1
    return mapping.backing.kind == "object" and (path[-1] == "dev" or (path[-1] == "ino" and alone))  # the kernel numbers what it makes


def kept(ckpt: Ckpt, generation: int) -> Snapshot:
    with open_store(ckpt.store, Mode.READ) as history:
        return history.load(generation)[1]


@pytest.mark.parametrize("name", ["mappings", "family", "signals", "waits", "churn"])
def test_each_captured_field_counts(name: str, ckpt: Ckpt, victim: Start) -> None:
    snapshot = kept(ckpt, ckpt.snapshot(victim(name).pid)["generation"])
    assert unfaithful(snapshot, snapshot, 0) == []
    silent, seen = [], 0
    for path in leaves(snapshot):
        if unseen(snapshot, path):
            continue
        seen += 1
        if not unfaithful(snapshot, changed(snapshot, path), 0):
            silent.append(" ".join(map(str, path)))
    assert "\n".join(silent) == ""
    assert seen > 100


def test_a_missing_thing_counts(ckpt: Ckpt, victim: Start) -> None:
    snapshot = kept(ckpt, ckpt.snapshot(victim("threads4").pid)["generation"])
    task = snapshot.tasks[0]
    for name in ("threads", "mappings", "descriptors"):
        for index in range(len(getattr(task, name))):
            items = getattr(task, name)
            less = replace(task, **{name: items[:index] + items[index + 1 :]})
            assert unfaithful(snapshot, replace(snapshot, tasks=(less,)), 0), f"{name} {index}"


def test_ports_stay_free(ckpt: Ckpt, tmp_path: Path) -> None:
    """A program that listens is verified while it listens: in a network of its own."""
    code = "import socket, time; s = socket.create_server(('127.0.0.1', 0)); print('READY', flush=True); time.sleep(600)"
    with Victim(["/usr/bin/python3", "-c", code]) as target:
        made = ckpt.snapshot(target.pid)
        verdict = json.loads(ckpt.run("verify", made["generation"], "--json").out)
        assert verdict["differences"] == []
        port = next(int(line.split()[1].split(":")[1], 16) for line in Path(f"/proc/{target.pid}/net/tcp").read_text().splitlines()[1:])
        with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
            assert client.getpeername()[1] == port
        assert os.path.exists(f"/proc/{target.pid}")  # noqa: PTH110
