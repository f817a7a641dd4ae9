-- Pages that change in every generation (or in at least SHARE percent of them)
-- args: share:number=100 lineage=
WITH counted AS (
    SELECT lineage, count(*) AS generations, max(generation) AS newest FROM generations
    WHERE parent IS NOT NULL AND (:lineage IS NULL OR lineage = :lineage OR command = :lineage)
    GROUP BY lineage
),
edges AS (
    -- runs of one generation never overlap: the sum of +1 and -1 is the number of generations that changed a page
    SELECT g.lineage, r.space, r.start AS page, 1 AS step
    FROM page_runs r JOIN generations g ON g.generation = r.generation WHERE g.parent IS NOT NULL
    UNION ALL
    SELECT g.lineage, r.space, r.start + r.count, -1
    FROM page_runs r JOIN generations g ON g.generation = r.generation WHERE g.parent IS NOT NULL
),
levels AS (
    SELECT
        lineage,
        space,
        page,
        sum(sum(step)) OVER (PARTITION BY lineage, space ORDER BY page) AS changed,
        lead(page) OVER (PARTITION BY lineage, space ORDER BY page) AS until
    FROM edges GROUP BY lineage, space, page
)
SELECT
    g.command,
    m.pid,
    m.name AS mapping,
    coalesce(m.start + (l.page - m.first_page) * 4096, l.page * 4096) AS address,
    l.until - l.page AS pages,
    l.changed AS generations,
    c.generations AS of_generations
FROM levels l
JOIN counted c ON c.lineage = l.lineage
JOIN generations g ON g.generation = c.newest
LEFT JOIN mappings m
    ON m.generation = c.newest AND m.space = l.space
    AND l.page >= m.first_page AND l.page < m.first_page + (m."end" - m.start) / 4096
WHERE l.changed > 0 AND l.changed * 100 >= c.generations * :share
ORDER BY l.changed DESC, l.lineage, address;
