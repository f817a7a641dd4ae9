-- Format 2. Frozen: a change of the format is a new file. Who wrote pages first, in generations that were taken with --trace.
CREATE TABLE writers (
    generation INTEGER NOT NULL REFERENCES generations (generation),
    writer INTEGER NOT NULL, ip INTEGER NOT NULL, file TEXT NOT NULL, symbol TEXT, offset INTEGER NOT NULL, call TEXT,
    PRIMARY KEY (generation, writer)
) WITHOUT ROWID;
CREATE TABLE page_writes (
    generation INTEGER NOT NULL REFERENCES generations (generation), space INTEGER NOT NULL, page INTEGER NOT NULL,
    written_ns INTEGER NOT NULL, pid INTEGER NOT NULL, tid INTEGER NOT NULL, writer INTEGER NOT NULL,
    PRIMARY KEY (generation, space, page)
) WITHOUT ROWID;
CREATE VIEW page_writers AS
    SELECT p.generation, p.space, p.page, datetime(p.written_ns / 1000000000, 'unixepoch') AS written, p.pid, p.tid,
        coalesce(w.symbol, printf('0x%x', w.offset)) AS function, w.offset, w.call, w.file, w.ip
    FROM page_writes p JOIN writers w ON w.generation = p.generation AND w.writer = p.writer;
