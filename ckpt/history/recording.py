"""A generation in the making: pages stream in while the target runs or is frozen, then one commit publishes all of it.

1. `add` may be called often, also for pages that come again (pre-copy): the last content counts.
2. `finish` is called once for each space, with its complete layout.
3. `commit` derives the plain rows (processes, threads, mappings, descriptors) from the snapshot and from the runs that
   went by, so that SQL can ask about any generation without decoding anything.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping as MappingABC
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ckpt.history import codec
from ckpt.history.rows import WRITE_COLUMNS, plain_rows, write_rows, writer_rows
from ckpt.history.runs import Buffer, PageSet
from ckpt.model import Evidence, Snapshot

if TYPE_CHECKING:
    from store import Counts, Generation, Rows, Writer


@dataclass(frozen=True, slots=True)
class Meta:
    """What the live wing knows of a generation beyond the snapshot itself. Times in nanoseconds."""

    lineage: str
    incarnation: str
    kind: str  #: "full" | "incremental"
    tracker: str  #: "uffd" | "softdirty" | "compare" | "none"
    pid: int
    command: str  #: the lineage's name for people: comm of the root
    stop_ns: int
    total_ns: int
    dirty: int | None = None  #: pages; None: as many as were added
    phases: MappingABC[str, int] = field(default_factory=dict)


class Recording:
    """Made by `History.begin`; wraps the store's writer."""

    def __init__(self, writer: Writer, parent: int | None) -> None:
        self._writer = writer
        self._parent = parent
        self._added: defaultdict[int, PageSet] = defaultdict(PageSet)
        self._layout: defaultdict[int, PageSet] = defaultdict(PageSet)
        self._counts = dict.fromkeys(("read", "zero", "deduplicated", "stored", "bytes_stored"), 0)

    def add(self, space: int, runs: Buffer, data: Buffer) -> Counts:
        """DATA and ZERO runs with the bytes of the DATA pages in order. Returns what this call did."""
        counts = self._writer.add(space, runs, data)
        for name in self._counts:
            self._counts[name] += getattr(counts, name)
        self._added[space].add(runs)
        return counts

    def finish(self, space: int, runs: Buffer) -> None:
        """The complete layout of the space: DATA, ZERO and SAME runs. What is not named is gone."""
        self._writer.finish(space, runs)
        self._layout[space].add(runs)

    def commit(self, snapshot: Snapshot, meta: Meta, evidence: Evidence | None = None) -> Generation:
        """Publishes. The generation is durable when this returns, and not there at all if it raises. `evidence`: who wrote since
        the parent."""
        from store import Generation, Rows

        dirty = sum(len(pages) for pages in self._added.values()) if meta.dirty is None else meta.dirty
        pages = {"resident": sum(len(layout) for layout in self._layout.values()), "dirty": dirty}
        pages |= {name: self._counts[name] for name in ("read", "zero", "deduplicated", "stored")}
        generation = Generation(
            number=0,
            parent=self._parent,
            lineage=meta.lineage,
            incarnation=meta.incarnation,
            kind=meta.kind,
            tracker=meta.tracker,
            pid=meta.pid,
            command=meta.command,
            created_ns=snapshot.taken_at,
            tags=(),
            stop_ns=meta.stop_ns,
            total_ns=meta.total_ns,
            pages=pages,
            bytes_stored=self._counts["bytes_stored"],
            phases=dict(meta.phases),
            snapshot=codec.encode(snapshot),
        )
        rows: dict[str, list[dict[str, Any]] | Rows] = {**plain_rows(snapshot, self._layout, self._added)}
        if evidence is not None:
            rows |= {"writers": writer_rows(evidence), "page_writes": Rows(WRITE_COLUMNS, write_rows(snapshot, evidence))}
        return self._numbered(generation, self._writer.publish(generation, rows))

    @property
    def writes(self) -> int:
        """Pages whose writer the committed generation names."""
        return self._writer.inserted.get("page_writes", 0)

    @staticmethod
    def _numbered(generation: Generation, number: int) -> Generation:
        from dataclasses import replace

        return replace(generation, number=number)
