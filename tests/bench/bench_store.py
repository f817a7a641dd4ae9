"""The store against its floors, and the cost of reading generations back. Sizes are parameters; one JSON object on standard output.

    python -m tests.bench.bench_store --pages 262144 --generations 200 [--folder DIR] [--store FILE --do build,reads,removal]

full:  a full snapshot of random pages against write(2) + fdatasync of the same bytes in the same run.
build: generations with --share of the pages rewritten at random, half-compressible; incremental: open + begin + add + finish + publish,
       median of the last ones; tending: what Store.tend took after each, which is due now and then.
reads: every page of --sample generations, evenly spread, first and last among them, with the page cache dropped before each, interleaved,
       medians of --rounds. Needs root for drop_caches; without it the ratios are of warm reads and `cold` is false.
removal: every second generation is removed; reads again, then once more after gc.

With --store the store stays where it is, so that a large measurement can be taken in pieces.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from store import Generation, Store
from store.layouts import RUN

PAGE = 4096
BATCH = 4096


def half(count: int) -> bytes:
    """Pages of which half the bytes are random."""
    noise, rest = os.urandom(2048 * count), bytes(2048)
    return b"".join(noise[at : at + 2048] + rest for at in range(0, len(noise), 2048))


def generation(parent: int | None) -> Generation:
    return Generation(0, parent, "bench", "bench", "incremental" if parent else "full", "uffd", 1, "bench", time.time_ns())


def floor(path: Path, data: memoryview) -> float:
    begin = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for at in range(0, len(data), 1 << 20):
            file.write(data[at : at + (1 << 20)])
        os.fdatasync(file.fileno())
    spent = time.perf_counter() - begin
    path.unlink()
    return spent


def write_full(path: Path, pages: int, data: memoryview | None) -> float:
    begin = time.perf_counter()
    spent = 0.0
    with Store.open(path, create=True) as store, store.begin(None) as writer:
        for at in range(0, pages, BATCH):
            count = min(BATCH, pages - at)
            piece = data[at * PAGE : (at + count) * PAGE] if data is not None else half(count)
            mark = time.perf_counter()
            writer.add(0, RUN.pack(at, count, 0), piece)
            spent += time.perf_counter() - mark
        mark = time.perf_counter()
        writer.finish(0, RUN.pack(0, pages, 0))
        writer.publish(generation(None), {})
        spent += time.perf_counter() - mark
    return time.perf_counter() - begin if data is not None else spent


def write_incremental(path: Path, pages: int, share: float) -> tuple[float, float]:
    """Seconds until the generation was there, and seconds of tending after it."""
    dirty = sorted(random.sample(range(pages), max(1, int(pages * share))))
    data = half(len(dirty))
    runs = b"".join(RUN.pack(page, 1, 0) for page in dirty)
    layout, at = [], 0
    for page in dirty:
        if page > at:
            layout.append(RUN.pack(at, page - at, 2))
        layout.append(RUN.pack(page, 1, 0))
        at = page + 1
    if at < pages:
        layout.append(RUN.pack(at, pages - at, 2))
    whole = b"".join(layout)
    begin = time.perf_counter()
    with Store.open(path) as store:
        parent = store.generations()[-1].number
        with store.begin(parent, tend=False) as writer:
            writer.add(0, runs, data)
            writer.finish(0, whole)
            number = writer.publish(generation(parent), {})
        spent = time.perf_counter() - begin
        store.tend(number)
    return spent, time.perf_counter() - begin - spent


def drop_caches() -> bool:
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
    except OSError:
        return False
    return True


def read_all(path: Path, number: int) -> float:
    begin = time.perf_counter()
    size = 0
    with Store.open(path, read_only=True) as store:
        for piece in store.read(number, 0, store.runs(number, 0)):
            size += len(piece)
    return time.perf_counter() - begin


def read_many(path: Path, numbers: list[int], rounds: int) -> dict[str, Any]:
    times: dict[int, list[float]] = {number: [] for number in numbers}
    cold = True
    for _ in range(rounds):
        for number in random.sample(numbers, len(numbers)):
            cold = drop_caches() and cold
            times[number].append(read_all(path, number))
    medians = {number: statistics.median(values) for number, values in times.items()}
    return {
        "cold": cold,
        "medians_ms": {str(number): round(value * 1e3, 1) for number, value in medians.items()},
        "slowest_ms": round(max(medians.values()) * 1e3, 1),
        "fastest_ms": round(min(medians.values()) * 1e3, 1),
        "slowest_to_fastest": round(max(medians.values()) / min(medians.values()), 3),
    }


def read_scattered(path: Path, number: int, pages: int, count: int) -> float:
    wanted = b"".join(RUN.pack(page, 1, 0) for page in sorted(random.sample(range(pages), count)))
    with Store.open(path, read_only=True) as store:
        for _ in store.read(number, 0, wanted):
            pass
        begin = time.perf_counter()
        for _ in store.read(number, 0, wanted):
            pass
        return time.perf_counter() - begin


def build_history(path: Path, pages: int, generations: int, share: float) -> dict[str, object]:
    write_full(path, pages, None)
    spent = [write_incremental(path, pages, share) for _ in range(generations - 1)]
    tail = [publishing for publishing, _ in spent[-20:]]
    return {
        "incremental_ms": {
            "median": round(statistics.median(tail) * 1e3, 1),
            "max": round(max(tail) * 1e3, 1),
            "all_max": round(max(publishing for publishing, _ in spent) * 1e3, 1),
        },
        "tending_ms": {
            "mean": round(statistics.fmean(tending for _, tending in spent) * 1e3, 1),
            "max": round(max(tending for _, tending in spent) * 1e3, 1),
        },
        "file_bytes": path.stat().st_size,
    }


def sampled(numbers: list[int], count: int) -> list[int]:
    """Evenly spread, the first and the last among them."""
    return sorted({numbers[round(at * (len(numbers) - 1) / max(count - 1, 1))] for at in range(count)})


def there(path: Path) -> list[int]:
    with Store.open(path, read_only=True) as store:
        return [generation.number for generation in store.generations()]


def remove_every_second(path: Path) -> None:
    with Store.open(path) as store:
        for generation in store.generations()[1::2]:
            store.remove(generation.number)


def measure_full(folder: Path, pages: int) -> dict[str, object]:
    data = memoryview(os.urandom(pages * PAGE))
    floors = [floor(folder / "floor", data)]
    full = write_full(folder / "full.db", pages, data)
    floors.append(floor(folder / "floor", data))
    (folder / "full.db").unlink()
    return {"seconds": round(full, 3), "floor_seconds": [round(f, 3) for f in floors], "ratio": round(full / min(floors), 2)}


def removal(path: Path, sample: int, rounds: int) -> dict[str, object]:
    remove_every_second(path)
    before = read_many(path, sampled(there(path), sample), rounds)
    with Store.open(path) as store:
        collected = store.gc()
    return {
        "reads": before,
        "gc": {"rewritten": collected.packs_rewritten, "freed": collected.bytes_freed},
        "reads_after_gc": read_many(path, sampled(there(path), sample), rounds),
        "file_bytes": path.stat().st_size,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--pages", type=int, default=65536)
    parser.add_argument("--generations", type=int, default=200)
    parser.add_argument("--share", type=float, default=0.01)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sample", type=int, default=9, help="generations that are read")
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--store", type=Path, default=None, help="made by build, and kept; else one in --folder that goes")
    parser.add_argument("--do", default="full,build,reads,removal")
    options = parser.parse_args(arguments)
    steps = options.do.split(",")
    result: dict[str, object] = {"pages": options.pages, "generations": options.generations}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        path = options.store or Path(name) / "store.db"
        if "full" in steps:
            result["full"] = measure_full(Path(name), options.pages)
        if "build" in steps:
            result["build"] = build_history(path, options.pages, options.generations, options.share)
        if "reads" in steps:
            result["scattered_ms"] = round(read_scattered(path, there(path)[-1], options.pages, min(3000, options.pages)) * 1e3, 1)
            result["reads"] = read_many(path, sampled(there(path), options.sample), options.rounds)
        if "removal" in steps:
            result["removal"] = removal(path, options.sample, options.rounds)
    result["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
