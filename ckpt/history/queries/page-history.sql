-- Which generations changed the page at ADDRESS, and who wrote it there first; equal content means equal bytes
-- args: address:number pid:number=
WITH place AS (
    -- private memory: the page's number is its address; a shared object: its offset
    SELECT generation, pid, space, :address / 4096 AS page FROM processes
    UNION
    SELECT generation, pid, space, first_page + (:address - start) / 4096 FROM mappings
    WHERE kind = 'object' AND :address >= start AND :address < "end"
),
changes AS (
    SELECT
        g.generation,
        g.parent,
        g.lineage,
        g.command,
        place.pid,
        place.space,
        place.page,
        g.created_ns,
        CASE r.content WHEN 'data' THEN r.block || ':' || (r.slot + place.page - r.start) ELSE r.content END AS content
    FROM place
    JOIN page_runs r
        ON r.generation = place.generation AND r.space = place.space AND r.start <= place.page AND r.start + r.count > place.page
    JOIN generations g ON g.generation = place.generation
    WHERE :pid IS NULL OR place.pid = :pid
)
SELECT
    c.generation,
    c.parent,
    c.command,
    c.pid,
    datetime(c.created_ns / 1000000000, 'unixepoch') AS created,
    c.content,
    nullif(min(c.generation) OVER (PARTITION BY c.lineage, c.pid, c.content), c.generation) AS first_seen,
    w.function AS writer,
    w.call,
    w.tid,
    w.written
FROM changes c
LEFT JOIN page_writers w ON w.generation = c.generation AND w.space = c.space AND w.page = c.page
ORDER BY c.lineage, c.generation;
