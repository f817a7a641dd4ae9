-- Which mappings are written most, over all incremental generations
-- args: lineage=
SELECT
    g.command,
    m.pid,
    m.name AS mapping,
    min(m.start) AS start,
    count(DISTINCT g.generation) AS generations,
    sum(m.dirty) AS dirty,
    round(1.0 * sum(m.dirty) / count(DISTINCT g.generation), 1) AS dirty_each,
    max(m.pages) AS pages,
    round(100.0 * sum(m.dirty) / nullif(sum(m.pages), 0), 1) AS dirty_percent
FROM mappings m
JOIN generations g ON g.generation = m.generation
WHERE g.kind = 'incremental' AND (:lineage IS NULL OR g.lineage = :lineage OR g.command = :lineage)
GROUP BY g.lineage, m.pid, m.name, CASE WHEN m.kind IN ('file', 'object') OR m.name IN ('[heap]', '[stack]') THEN 0 ELSE m.start END
HAVING sum(m.dirty) > 0
ORDER BY sum(m.dirty) DESC, start;
