"""kill_driver.py PID: freezes, injects, runs batches and arms, over and over: the ckpt that kill_injection kills."""

from __future__ import annotations

import sys

from native._native import ffi, lib
from tests.native.remote import batch, check, frozen, opened

ROUNDS = 10


def main() -> None:
    pid = int(sys.argv[1])
    for _ in range(ROUNDS):
        with frozen(pid) as tree:
            count = check(lib.ckpt_tree_threads(tree, ffi.NULL, 0), tree)
            threads = ffi.new("struct ckpt_thread_id[]", count)
            lib.ckpt_tree_threads(tree, threads, count)
            for thread in (threads[0], threads[count // 2], threads[count - 1]):
                batch(tree, thread.tid, [(110,)] * 50)
        with opened(pid) as tree:
            check(lib.ckpt_track_arm(tree, pid, -1, 0, ffi.new("struct ckpt_track *")), tree)


if __name__ == "__main__":
    main()
