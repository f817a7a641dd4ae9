-- Which functions wrote most pages first, over all generations taken with --trace
-- args: lineage= generation:number=
WITH written AS (
    SELECT
        g.lineage,
        g.command,
        p.generation,
        p.tid,
        w.file,
        coalesce(w.symbol, printf('0x%x', w.offset)) AS function,
        w.call
    FROM page_writes p
    JOIN writers w ON w.generation = p.generation AND w.writer = p.writer
    JOIN generations g ON g.generation = p.generation
    WHERE (:lineage IS NULL OR g.lineage = :lineage OR g.command = :lineage) AND (:generation IS NULL OR p.generation = :generation)
)
SELECT
    command,
    function,
    call,
    count(*) AS pages,
    round(100.0 * count(*) / sum(count(*)) OVER (PARTITION BY lineage), 1) AS percent,
    count(DISTINCT generation) AS generations,
    count(DISTINCT tid) AS threads,
    file
FROM written
GROUP BY lineage, file, function, call
ORDER BY pages DESC, function;
