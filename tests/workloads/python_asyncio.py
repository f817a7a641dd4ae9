"""CPython's asyncio: tasks that talk over a socket pair and over TCP on the loopback, timers, a queue, an executor.

Seen: a message lost or doubled, a timer that never fires or fires too early, an exception in any task (an EINTR that the
selector did not expect, a connection that ended), a task that stands still.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time


class State:
    def __init__(self) -> None:
        self.pairs = self.echoes = self.ticks = self.jobs = 0
        self.wrong: list[str] = []

    def fail(self, text: str) -> None:
        self.wrong.append(text)

    def counts(self) -> tuple[int, int, int, int]:
        return self.pairs, self.echoes, self.ticks, self.jobs


async def pair(state: State) -> None:
    left, right = socket.socketpair()
    left.setblocking(False)
    right.setblocking(False)
    loop = asyncio.get_running_loop()
    while True:
        await loop.sock_sendall(left, state.pairs.to_bytes(8, "little"))
        got = await loop.sock_recv(right, 8)
        if int.from_bytes(got, "little") != state.pairs:
            state.fail(f"the pair gave {got!r} for {state.pairs}")
        state.pairs += 1
        await asyncio.sleep(0.002)


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        writer.write(line)
        await writer.drain()


async def echo(state: State) -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    while True:
        line = f"message {state.echoes}\n".encode()
        writer.write(line)
        if await reader.readline() != line:
            state.fail(f"echo {state.echoes} came back as something else")
        state.echoes += 1
        await asyncio.sleep(0.003)


async def tick(state: State) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + 0.01
        fired: asyncio.Future[float] = loop.create_future()
        loop.call_at(due, lambda fired=fired: fired.set_result(loop.time()))  # type: ignore[misc]
        at = await fired
        if at < due - 0.001:
            state.fail(f"a timer fired {due - at:.4f} s too early")
        state.ticks += 1


async def job(state: State) -> None:
    loop = asyncio.get_running_loop()
    while True:
        total = await loop.run_in_executor(None, lambda: sum(range(20000)))
        if total != 199990000:
            state.fail("a job of the executor gave something else")
        state.jobs += 1
        await asyncio.sleep(0.005)


async def verdict(state: State, tasks: list[asyncio.Task[None]]) -> str:
    before = state.counts()
    deadline = time.monotonic() + 10
    while any(new == old for new, old in zip(state.counts(), before, strict=True)):
        for task in tasks:
            if task.done():
                return f"FAIL {task.get_name()} ended: {task.exception()!r}"
        if time.monotonic() > deadline:
            return f"FAIL something stands still: {before} and {state.counts()}"
        await asyncio.sleep(0.01)
    return f"FAIL {state.wrong[0]}" if state.wrong else "PASS"


async def main() -> None:
    state = State()
    tasks = [asyncio.create_task(run(state), name=run.__name__) for run in (pair, echo, tick, job)]
    while min(state.counts()) < 5:
        await asyncio.sleep(0.01)
    questions: asyncio.Queue[bytes] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def read() -> None:
        questions.put_nowait(sys.stdin.buffer.raw.read(4096))  # type: ignore[attr-defined]

    loop.add_reader(0, read)
    print("READY", flush=True)
    while await questions.get():
        print(await verdict(state, tasks), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
