-- Format 1. Frozen: a change of the format is a new file. FORMAT.md says what the tables mean.
CREATE TABLE store_info (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE generations (
    generation INTEGER PRIMARY KEY AUTOINCREMENT,
    parent INTEGER REFERENCES generations (generation),
    lineage TEXT NOT NULL,
    incarnation TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('full', 'incremental')),
    tracker TEXT NOT NULL,
    pid INTEGER NOT NULL,
    command TEXT NOT NULL,
    created_ns INTEGER NOT NULL,
    stop_ns INTEGER NOT NULL,
    total_ns INTEGER NOT NULL,
    resident INTEGER NOT NULL,
    dirty INTEGER NOT NULL,
    "read" INTEGER NOT NULL,
    zero INTEGER NOT NULL,
    deduplicated INTEGER NOT NULL,
    stored INTEGER NOT NULL,
    bytes_stored INTEGER NOT NULL
);
CREATE INDEX generations_by_parent ON generations (parent);
CREATE TABLE snapshots (generation INTEGER PRIMARY KEY REFERENCES generations (generation), snapshot BLOB NOT NULL);
CREATE TABLE phases (
    generation INTEGER NOT NULL REFERENCES generations (generation), phase TEXT NOT NULL, ns INTEGER NOT NULL,
    PRIMARY KEY (generation, phase)
) WITHOUT ROWID;
CREATE TABLE tags (tag TEXT PRIMARY KEY, generation INTEGER NOT NULL REFERENCES generations (generation)) WITHOUT ROWID;
CREATE TABLE lineages (
    lineage TEXT PRIMARY KEY, command TEXT NOT NULL, first_ns INTEGER NOT NULL,
    untended INTEGER NOT NULL, untended_bytes INTEGER NOT NULL, tended_pack INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE processes (
    generation INTEGER NOT NULL REFERENCES generations (generation),
    pid INTEGER NOT NULL, ppid INTEGER, pgid INTEGER, sid INTEGER, start_ticks INTEGER, comm TEXT, space INTEGER, threads INTEGER,
    pages INTEGER, dirty INTEGER,
    PRIMARY KEY (generation, pid)
) WITHOUT ROWID;
CREATE TABLE threads (
    generation INTEGER NOT NULL REFERENCES generations (generation),
    pid INTEGER NOT NULL, tid INTEGER NOT NULL, comm TEXT, phase TEXT, syscall INTEGER, raw_retval INTEGER, action TEXT, reason TEXT,
    disturbed INTEGER,
    PRIMARY KEY (generation, tid)
) WITHOUT ROWID;
CREATE TABLE mappings (
    generation INTEGER NOT NULL REFERENCES generations (generation),
    pid INTEGER NOT NULL, space INTEGER, start INTEGER NOT NULL, "end" INTEGER NOT NULL, first_page INTEGER, permissions TEXT, kind TEXT,
    name TEXT, offset INTEGER, pages INTEGER, dirty INTEGER,
    PRIMARY KEY (generation, pid, start)
) WITHOUT ROWID;
CREATE TABLE descriptors (
    generation INTEGER NOT NULL REFERENCES generations (generation),
    pid INTEGER NOT NULL, fd INTEGER NOT NULL, cloexec INTEGER, file INTEGER, kind TEXT, flags INTEGER, position INTEGER, summary TEXT,
    PRIMARY KEY (generation, pid, fd)
) WITHOUT ROWID;
CREATE TABLE manifests (manifest INTEGER PRIMARY KEY AUTOINCREMENT, base INTEGER REFERENCES manifests (manifest), layout BLOB NOT NULL);
CREATE INDEX manifests_by_base ON manifests (base) WHERE base IS NOT NULL;
CREATE TABLE spaces (
    generation INTEGER NOT NULL REFERENCES generations (generation), space INTEGER NOT NULL,
    pages INTEGER NOT NULL, zero_pages INTEGER NOT NULL, manifest INTEGER NOT NULL REFERENCES manifests (manifest),
    PRIMARY KEY (generation, space)
) WITHOUT ROWID;
CREATE INDEX spaces_by_manifest ON spaces (manifest);
CREATE TABLE page_runs (
    generation INTEGER NOT NULL REFERENCES generations (generation), space INTEGER NOT NULL,
    start INTEGER NOT NULL, count INTEGER NOT NULL, content TEXT NOT NULL,
    block INTEGER, slot INTEGER,
    PRIMARY KEY (generation, space, start)
) WITHOUT ROWID;
CREATE TABLE packs (
    pack INTEGER PRIMARY KEY AUTOINCREMENT, frames INTEGER NOT NULL, bytes INTEGER NOT NULL, contents BLOB NOT NULL, lengths BLOB NOT NULL
);
CREATE TABLE pack_blocks (block INTEGER NOT NULL, pack INTEGER NOT NULL, PRIMARY KEY (block, pack)) WITHOUT ROWID;
CREATE TABLE pack_data (pack INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE index_segments (segment INTEGER PRIMARY KEY AUTOINCREMENT, entries INTEGER NOT NULL, bits INTEGER NOT NULL, filter BLOB NOT NULL);
CREATE TABLE index_buckets (
    segment INTEGER NOT NULL REFERENCES index_segments (segment), bucket INTEGER NOT NULL, entries BLOB NOT NULL, PRIMARY KEY (segment, bucket)
);
CREATE VIEW latest_generations AS
    SELECT g.* FROM generations g WHERE g.generation = (SELECT max(generation) FROM generations WHERE lineage = g.lineage);
CREATE VIEW generation_summary AS
    SELECT g.generation, g.parent, g.lineage, g.command, g.pid, g.kind, g.tracker,
        datetime(g.created_ns / 1000000000, 'unixepoch') AS created,
        (SELECT group_concat(tag, ', ') FROM tags t WHERE t.generation = g.generation) AS tags,
        round(g.stop_ns / 1e3, 1) AS stop_us, round(g.total_ns / 1e6, 3) AS total_ms,
        g.resident, g.dirty, g."read", g.zero, g.deduplicated, g.stored, g.bytes_stored
    FROM generations g;
CREATE VIEW changed_pages AS
    SELECT generation, space, sum(count) AS pages, count(*) AS runs, sum(CASE content WHEN 'data' THEN count ELSE 0 END) AS data,
        sum(CASE content WHEN 'zero' THEN count ELSE 0 END) AS zero, sum(CASE content WHEN 'absent' THEN count ELSE 0 END) AS gone
    FROM page_runs GROUP BY generation, space;
CREATE VIEW mapping_changes AS
    SELECT m.generation, m.pid, m.start, m.name, m.permissions, m.pages, m.dirty, round(100.0 * m.dirty / nullif(m.pages, 0), 1) AS dirty_percent
    FROM mappings m;
CREATE VIEW pack_usage AS
    SELECT pack, frames, bytes, round(1.0 * bytes / nullif(frames, 0), 0) AS bytes_per_page,
        (SELECT count(*) FROM pack_blocks b WHERE b.pack = packs.pack) AS blocks
    FROM packs;
