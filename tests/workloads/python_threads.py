"""CPython with threads: each extends a hash chain under a lock of its own, one prints progress to a file, a queue joins them.

Any chain can be computed again from its length, so a lost, doubled or torn step shows. argv[1] = the progress file.
"""

from __future__ import annotations

import hashlib
import queue
import random
import sys
import threading
import time

THREADS = 4


class Chain(threading.Thread):
    def __init__(self, seed: int, out: queue.Queue[tuple[int, int]]) -> None:
        super().__init__(daemon=True)
        self.seed, self.out, self.lock, self.length = seed, out, threading.Lock(), 0
        self.head = str(seed).encode()
        self.random = random.Random(seed)
        self.drawn = 0
        self.checked: tuple[int, bytes] = (0, self.head)
        self.local = threading.local()

    def run(self) -> None:
        self.local.steps = 0
        while True:
            with self.lock:
                self.head = hashlib.sha256(self.head + self.length.to_bytes(8, "little")).digest()
                self.length += 1
                self.local.steps += 1
                self.random.random()
                self.drawn += 1
                assert self.local.steps == self.length
            self.out.put((self.seed, self.length))
            time.sleep(0.001)

    def problem(self) -> str:
        with self.lock:
            length, head = self.checked
            while length < self.length:
                head = hashlib.sha256(head + length.to_bytes(8, "little")).digest()
                length += 1
            self.checked = (length, head)
            if head != self.head:
                return f"chain {self.seed} is wrong at {self.length}"
            again = random.Random(self.seed)
            for _ in range(self.drawn):
                again.random()
            return "" if again.getstate() == self.random.getstate() else f"generator {self.seed} is wrong"


class Collector(threading.Thread):
    """Wants every length of every chain once and in order; writes progress at a position that it knows."""

    def __init__(self, path: str, into: queue.Queue[tuple[int, int]]) -> None:
        super().__init__(daemon=True)
        self.into, self.seen, self.wrong, self.lines = into, dict.fromkeys(range(THREADS), 0), "", 0
        self.file = open(path, "w+b", buffering=0)  # noqa: PTH123, SIM115

    def run(self) -> None:
        while True:
            seed, length = self.into.get()
            if length != self.seen[seed] + 1:
                self.wrong = f"chain {seed}: {length} came after {self.seen[seed]}"
            self.seen[seed] = length
            if length % 50 == 0:
                if self.file.tell() != self.lines * 16:
                    self.wrong = f"position {self.file.tell()} after {self.lines} lines"
                self.file.write(f"{seed:4} {length:10}\n".encode())
                self.lines += 1


def verdict(chains: list[Chain], collector: Collector) -> str:
    before = [chain.length for chain in chains]
    deadline = time.monotonic() + 10
    while any(chain.length == old for chain, old in zip(chains, before, strict=True)):
        if time.monotonic() > deadline:
            return "FAIL a thread stands still"
        time.sleep(0.005)
    if not collector.is_alive() or not all(chain.is_alive() for chain in chains):
        return "FAIL a thread ended"
    problems = [problem for chain in chains if (problem := chain.problem())] + ([collector.wrong] if collector.wrong else [])
    return f"FAIL {problems[0]}" if problems else "PASS"


def main() -> None:
    joined: queue.Queue[tuple[int, int]] = queue.Queue()
    collector = Collector(sys.argv[1], joined)
    chains = [Chain(seed, joined) for seed in range(THREADS)]
    for thread in (collector, *chains):
        thread.start()
    while min(chain.length for chain in chains) < 20:
        time.sleep(0.005)
    print("READY", flush=True)
    for _ in sys.stdin:
        print(verdict(chains, collector), flush=True)


if __name__ == "__main__":
    main()
