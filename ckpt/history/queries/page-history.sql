-- Which generations changed the page at ADDRESS; equal content means equal bytes
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
        g.created_ns,
        CASE r.content WHEN 'data' THEN r.block || ':' || (r.slot + place.page - r.start) ELSE r.content END AS content
    FROM place
    JOIN page_runs r
        ON r.generation = place.generation AND r.space = place.space AND r.start <= place.page AND r.start + r.count > place.page
    JOIN generations g ON g.generation = place.generation
    WHERE :pid IS NULL OR place.pid = :pid
)
SELECT
    generation,
    parent,
    command,
    pid,
    datetime(created_ns / 1000000000, 'unixepoch') AS created,
    content,
    nullif(min(generation) OVER (PARTITION BY lineage, pid, content), generation) AS first_seen
FROM changes
ORDER BY lineage, generation;
