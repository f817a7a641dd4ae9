"""kill -9 of a writing process at random times: what it reported as published is there, nothing else is seen, fsck --full is clean.

CKPT_STORE_KILLS sets how many kills (default 6; the soak takes hundreds).
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from store import Store
from tests.unit.stores import contents

PAGES = 3000
# Commits generations for ever, with a removal and a gc now and then; a line for each thing that is durable.
VICTIM = f"""
import random, sys
from store import Store
from store.layouts import RUN
from tests.unit.stores import generation
noise = random.Random(int(sys.argv[2]))
with Store.open(sys.argv[1], create=True) as store:
    numbers = [g.number for g in store.generations()]
    print("READY", flush=True)
    while True:
        parent = numbers[-1] if numbers else None
        with store.begin(parent) as writer:
            seed = noise.randrange(1 << 30)
            fresh = sorted(random.Random(seed).sample(range({PAGES}), 200)) if parent else range({PAGES})
            writer.add(0, b"".join(RUN.pack(n, 1, 0) for n in fresh), b"".join(random.Random(seed + n).randbytes(4096) for n in fresh))
            writer.finish(0, RUN.pack(0, {PAGES}, 2))
            numbers.append(writer.publish(generation(parent), {{}}))
        print("published", numbers[-1], parent, seed, flush=True)
        if len(numbers) > 4:
            gone = numbers.pop(noise.randrange(len(numbers) - 1))
            print("removing", gone, flush=True)
            store.remove(gone)
            store.gc()
"""


def fresh_pages(parent: int | None, seed: int) -> dict[int, bytes]:
    numbers = random.Random(seed).sample(range(PAGES), 200) if parent else range(PAGES)
    return {number: random.Random(seed + number).randbytes(4096) for number in numbers}


def test_kills(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    dice = random.Random(os.urandom(8))
    oracle: dict[int, dict[int, bytes]] = {}
    going: set[int] = set()
    for _ in range(int(os.environ.get("CKPT_STORE_KILLS", "6"))):
        with subprocess.Popen(
            [sys.executable, "-c", VICTIM, str(path), str(dice.randrange(1 << 30))], stdout=subprocess.PIPE, text=True
        ) as victim:
            assert victim.stdout is not None
            assert victim.stdout.readline() == "READY\n"
            time.sleep(dice.uniform(0, 1.2))
            victim.send_signal(signal.SIGKILL)
            lines = victim.stdout.read().splitlines()
        for line in lines:
            words = line.split()
            if words[0] == "removing":
                going.add(int(words[1]))
                continue
            if len(words) < 4 or not line.startswith("published"):
                continue
            number, parent, seed = int(words[1]), None if words[2] == "None" else int(words[2]), int(words[3])
            oracle[number] = dict(oracle[parent] if parent else {}) | fresh_pages(parent, seed)
        with Store.open(path) as store:
            assert store.fsck(full=True) == []
            there = {found.number for found in store.generations()}
            assert set(oracle) - going <= there
            for number in there & set(oracle):
                assert contents(store, number) == oracle[number], number
            unheard = there - set(oracle)
            assert len(unheard) <= 1, "published, and killed before it could say so"
            for number in unheard:  # its contents are whole, fsck said; nothing is known of them here
                oracle[number] = contents(store, number)
            store.gc()
            assert store.fsck(full=True) == []
