-- How memory and the store grow, generation by generation
-- args: lineage=
SELECT
    g.generation,
    g.command,
    strftime('%m-%d %H:%M:%S', g.created_ns / 1000000000, 'unixepoch') AS created,
    g.resident AS pages,
    g.resident - p.resident AS grown,
    g.dirty,
    round(g.bytes_stored / 1048576.0, 2) AS stored_mib,
    round(sum(g.bytes_stored) OVER (PARTITION BY g.lineage ORDER BY g.generation) / 1048576.0, 2) AS sum_mib
FROM generations g
LEFT JOIN generations p ON p.generation = g.parent
WHERE :lineage IS NULL OR g.lineage = :lineage OR g.command = :lineage
ORDER BY g.lineage, g.generation;
