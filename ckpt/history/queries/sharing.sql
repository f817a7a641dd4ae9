-- Pages with equal content: between generations and their parents, and between the newest of every program
-- args: generation:number=
WITH pairs AS (
    SELECT child.generation AS a, child.parent AS b FROM generations child WHERE child.parent IS NOT NULL
    UNION
    SELECT max(x.generation, y.generation), min(x.generation, y.generation)
    FROM latest_generations x JOIN latest_generations y ON x.generation <> y.generation
    UNION
    SELECT generation, generation FROM latest_generations
),
spaces_of AS (
    SELECT s.generation, s.space, s.pages, s.pages - s.zero_pages AS data_pages, p.pid, coalesce(p.comm, 'shared memory') AS process
    FROM spaces s LEFT JOIN processes p ON p.generation = s.generation AND p.space = s.space
)
SELECT * FROM (SELECT
    a.generation,
    a.pid,
    a.process,
    b.generation AS with_generation,
    b.pid AS with_pid,
    b.process AS with_process,
    shared_pages(a.generation, a.space, b.generation, b.space) AS pages,
    round(100.0 * shared_pages(a.generation, a.space, b.generation, b.space) / nullif(a.data_pages, 0), 1) AS percent
FROM pairs
JOIN spaces_of a ON a.generation = pairs.a
JOIN spaces_of b ON b.generation = pairs.b
WHERE (:generation IS NULL OR :generation IN (pairs.a, pairs.b))
    AND (pairs.a <> pairs.b OR a.space < b.space)
) WHERE pages > 0
ORDER BY generation, with_generation, pid, with_pid;
