"""freezer.py PID START_TICKS COUNT SEED: freezes a tree COUNT times, as a snapshot does, for random times and with random pauses."""

from __future__ import annotations

import random
import sys
import time

from ckpt.live import runtime
from ckpt.live.core import Tree
from ckpt.model import PidRef

LONGEST_PAUSE_S, LONGEST_STOP_S = 0.01, 0.002


def main() -> None:
    pid, start_ticks, count, seed = map(int, sys.argv[1:])
    dice = random.Random(seed)
    for _ in range(count):
        with runtime.target_lock(PidRef(pid, start_ticks), timeout_s=10), Tree(pid, start_ticks) as tree:

            def once(tree: Tree = tree) -> None:
                tree.freeze()
                time.sleep(dice.random() * LONGEST_STOP_S)
                tree.thaw()

            tree.by_own_tracer(once)
        time.sleep(dice.random() * LONGEST_PAUSE_S)


if __name__ == "__main__":
    main()
