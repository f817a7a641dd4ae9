"""The store against its floors, and the cost of reading generations back. Sizes are parameters; one JSON object on standard output.

    python -m tests.bench.bench_store --pages 262144 --generations 200 [--folder DIR]

full:  a full snapshot of random pages against write(2) + fdatasync of the same bytes in the same run.
incremental: open + begin + add + finish + publish with 1 % of the pages dirty, half-compressible, median of the last generations.
reads: every page of chosen generations with the page cache dropped, interleaved, medians; once more after every second
       generation was removed and gc has run. Needs root for drop_caches; without it the ratios are of warm reads and `cold` is false.
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


def write_incremental(path: Path, pages: int, share: float) -> float:
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
        with store.begin(parent) as writer:
            writer.add(0, runs, data)
            writer.finish(0, whole)
            writer.publish(generation(parent), {})
    return time.perf_counter() - begin


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


def read_many(path: Path, numbers: list[int], rounds: int) -> dict[str, object]:
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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--pages", type=int, default=65536)
    parser.add_argument("--generations", type=int, default=200)
    parser.add_argument("--share", type=float, default=0.01)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--skip-full", action="store_true")
    options = parser.parse_args(arguments)
    result: dict[str, object] = {"pages": options.pages, "generations": options.generations}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        if not options.skip_full:
            data = memoryview(os.urandom(options.pages * PAGE))
            floors = [floor(folder / "floor", data)]
            full = write_full(folder / "full.db", options.pages, data)
            floors.append(floor(folder / "floor", data))
            (folder / "full.db").unlink()
            del data
            result["full"] = {
                "seconds": round(full, 3),
                "floor_seconds": [round(f, 3) for f in floors],
                "ratio": round(full / min(floors), 2),
            }
            print(json.dumps(result["full"]), file=sys.stderr)
        path = folder / "store.db"
        write_full(path, options.pages, None)
        spent = [write_incremental(path, options.pages, options.share) for _ in range(options.generations - 1)]
        tail = spent[-20:]
        result["incremental_ms"] = {
            "median": round(statistics.median(tail) * 1e3, 1),
            "max": round(max(tail) * 1e3, 1),
            "all_max": round(max(spent) * 1e3, 1),
        }
        result["file_bytes"] = path.stat().st_size
        print(json.dumps(result["incremental_ms"]), result["file_bytes"], file=sys.stderr)
        last = options.generations
        result["scattered_ms"] = round(read_scattered(path, last, options.pages, min(3000, options.pages)) * 1e3, 1)
        print("scattered", result["scattered_ms"], file=sys.stderr)
        chosen = sorted({1, last // 4 or 1, last // 2 or 1, last * 3 // 4 or 1, last - 1 or 1, last})
        result["reads"] = read_many(path, chosen, options.rounds)
        print(json.dumps(result["reads"]), file=sys.stderr)
        with Store.open(path) as store:
            for number in range(2, last + 1, 2):
                store.remove(number)
            collected = store.gc()
        chosen = sorted({number if number % 2 else number - 1 for number in chosen})
        result["reads_after_removal"] = read_many(path, chosen, options.rounds)
        result["gc"] = {"rewritten": collected.packs_rewritten, "freed": collected.bytes_freed}
        result["file_bytes_after_removal"] = path.stat().st_size
    result["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
