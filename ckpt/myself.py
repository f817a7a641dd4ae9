"""A program asks for its own checkpoint: what `ckpt.checkpoint_self` runs, and who stands beside it. native/self/ckpt_self.c is the
same in C.

    generation = ckpt.checkpoint_self()

It comes back more than once, as fork() does: with the generation's number in the process that goes on, with 0 in one that a restore or
a rollback has brought back to this point, with a negative errno when there is no checkpoint.

The caller waits in read() of an eventfd. ckpt must not be its child, or it would be of the tree: the process that is started here ends at
once and leaves a supervisor to init, which runs ckpt and writes its answer. In the generation the thread stands in that read with 0 as
its result: no eventfd gives 0 bytes.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading

FAILED = 1 << 62  #: with an errno in the low bits
_ERRORS = {2: errno.EINVAL, 3: errno.ENOTSUP, 4: errno.EPERM, 5: errno.EUCLEAN, 6: errno.ESRCH}
COMMAND = "import sys; from ckpt.cli.main import main; sys.exit(main())"


def checkpoint_self() -> int:
    """Takes a checkpoint of this process with all its threads and children, into CKPT_STORE or the default store."""
    answer = os.eventfd(0, os.EFD_CLOEXEC)
    try:
        words = [sys.executable, "-m", "ckpt.myself", str(os.getpid()), str(threading.get_native_id()), str(answer)]
        subprocess.run(words, pass_fds=(answer,), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
        got = os.read(answer, 8)
    except OSError as error:
        return -(error.errno or errno.EIO)
    except subprocess.CalledProcessError:
        return -errno.EIO
    finally:
        os.close(answer)
    result = int.from_bytes(got, sys.byteorder)
    return -(result & ~FAILED) if result & FAILED else result


def supervise(pid: int, tid: int) -> int:
    """Runs ckpt; what the eventfd is to say."""
    words = [sys.executable, "-c", COMMAND, "snapshot", str(pid), "--self", str(tid), "--json"]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)
    if done.returncode == 0:
        return int(json.loads(done.stdout)["generation"])
    return FAILED | _ERRORS.get(done.returncode, errno.EIO)


def main(pid: int, tid: int, answer: int) -> None:
    """Ends at once in the process that was started; goes on in its orphan."""
    if os.fork():
        os._exit(0)
    os.setsid()
    result = FAILED | errno.EIO
    try:
        result = supervise(pid, tid)
    finally:
        os.write(answer, result.to_bytes(8, sys.byteorder))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
