"""What the store's tests share: runs, pages, and a generation to publish."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from pathlib import Path

from store import Generation, Store
from store.layouts import RUN

PAGE = 4096
ZERO = bytes(PAGE)


def page(seed: int) -> bytes:
    """Content number `seed`: 0 is the zero page, odd ones do not compress, even ones do."""
    if seed == 0:
        return ZERO
    noise = random.Random(seed).randbytes(PAGE if seed % 2 else 1024)
    return noise if seed % 2 else noise + bytes(PAGE - 1024)


def data_runs(pages: Mapping[int, bytes]) -> tuple[bytes, bytes]:
    """Each page a DATA run of its own, and the bytes."""
    return b"".join(RUN.pack(number, 1, 0) for number in sorted(pages)), b"".join(pages[number] for number in sorted(pages))


def layout(same: Iterable[int], data: Iterable[int] = ()) -> bytes:
    """A complete layout: these pages SAME, those DATA."""
    kinds = dict.fromkeys(same, 2) | dict.fromkeys(data, 0)
    return b"".join(RUN.pack(number, 1, kinds[number]) for number in sorted(kinds))


def generation(parent: int | None = None, **fields: object) -> Generation:
    return Generation(0, parent, "lineage", "incarnation", "full" if parent is None else "incremental", "uffd", 7, "victim", 1, **fields)  # type: ignore[arg-type]


def written(pages: Iterable[int], symbol: str, space: int = 0) -> dict[str, list[dict[str, object]]]:
    """Rows that say that this function wrote these pages, at a time that is the page's number."""
    writer = {"writer": 0, "ip": 0x401000, "file": "/bin/victim", "symbol": symbol, "offset": 4, "call": None}
    return {
        "writers": [writer],
        "page_writes": [{"space": space, "page": page, "written_ns": page, "pid": 7, "tid": 8, "writer": 0} for page in pages],
    }


def commit(
    store: Store,
    parent: int | None,
    changed: Mapping[int, bytes],
    kept: Iterable[int] = (),
    space: int = 0,
    rows: Mapping[str, list[dict[str, object]]] | None = None,
) -> int:
    """A generation of one space: `changed` with their bytes, `kept` as the parent has them."""
    with store.begin(parent) as writer:
        writer.add(space, *data_runs(changed))
        writer.finish(space, layout(set(kept) - set(changed), changed))
        return writer.publish(generation(parent), rows or {})


def contents(store: Store, number: int, space: int = 0) -> dict[int, bytes]:
    """Every page of the space, through `runs` and `read`."""
    runs = store.runs(number, space)
    data = b"".join(list(store.read(number, space, runs)))
    found, at = {}, 0
    for start, count, kind in RUN.iter_unpack(runs):
        for number_ in range(start, start + count):
            found[number_] = data[at : at + PAGE]
            assert (found[number_] == ZERO) == (kind == 1)
            at += PAGE
    assert at == len(data)
    return found


def flip(path: Path, needle: bytes) -> None:
    """Flips one bit where these bytes stand in the file."""
    whole = path.read_bytes()
    at = whole.index(needle)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes([needle[0] ^ 1]))
