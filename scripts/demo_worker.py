"""The demo's Python program: threads that each extend a hash chain, and one that reports where they are.

A chain's head after n steps can be recomputed by anybody, so a lost, doubled or torn step shows. The report is one
line at the start of the file, rewritten in place: {"threads": [[n, head], ...], "ticks": t}.
"""

import hashlib
import json
import os
import sys
import threading
import time

THREADS = 3


def step(head: str, number: int) -> str:
    return hashlib.sha256(f"{head}:{number}".encode()).hexdigest()


class Chain:
    def __init__(self, seed: int) -> None:
        self.state = (0, f"seed-{seed}")

    def run(self) -> None:
        while True:
            number, head = self.state
            self.state = (number + 1, step(head, number + 1))  # one assignment: never torn
            time.sleep(0.0005)


def main(path: str) -> None:
    chains = [Chain(seed) for seed in range(THREADS)]
    for chain in chains:
        threading.Thread(target=chain.run, daemon=True).start()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    ticks = 0
    while True:
        ticks += 1
        line = json.dumps({"threads": [chain.state for chain in chains], "ticks": ticks})
        os.pwrite(descriptor, line.ljust(1024).encode(), 0)
        time.sleep(0.02)


if __name__ == "__main__":
    main(sys.argv[1])
