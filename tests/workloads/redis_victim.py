"""redis-server with a client of our own. Says "READY PID": the server, a child of this driver, is what ckpt acts on.

The server has no persistence and listens on a free loopback port. Between questions the driver keeps no connection, so a
rollback ends none of ours. argv: a folder, the number of keys.

  verify          every key that the model knows has its value, and the server has no other
  set KEY VALUE   -> OK; the model learns it          get KEY -> the value, or NONE (the server's word, model untouched)
  write COUNT     -> OK; rewrites random keys         save / back: the model remembers itself / becomes what it remembered
  info FIELD      -> the field of INFO                port -> the port
  collect         -> OK, once the server has ended and its number is free
"""

from __future__ import annotations

import random
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


class Resp:
    """As much of the protocol as is needed: bulk strings out, any answer in."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.file = self.socket.makefile("rb")

    def close(self) -> None:
        self.file.close()
        self.socket.close()

    def send(self, *words: object) -> bytes:
        parts = [str(word).encode() for word in words]
        return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)

    def answer(self) -> Any:
        line = self.file.readline()
        if not line:
            raise ConnectionError("the server ended the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"-":
            raise RuntimeError(rest.decode())
        if kind in b"+":
            return rest.decode()
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == b"-1" else self.file.read(int(rest) + 2)[:-2].decode()
        return [self.answer() for _ in range(int(rest))]

    def ask(self, *words: object) -> Any:
        self.socket.sendall(self.send(*words))
        return self.answer()

    def many(self, commands: list[tuple[object, ...]]) -> list[Any]:
        answers: list[Any] = []
        for start in range(0, len(commands), 500):
            part = commands[start : start + 500]
            self.socket.sendall(b"".join(self.send(*words) for words in part))
            answers += [self.answer() for _ in part]
        return answers


class Driver:
    def __init__(self, folder: Path, keys: int) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.random = random.Random(3)
        options = [
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
            "--dir",
            str(folder),
            "--daemonize",
            "no",
        ]
        self.server = subprocess.Popen(
            ["redis-server", *options], stdin=subprocess.DEVNULL, stdout=(folder / "redis.log").open("ab"), stderr=subprocess.STDOUT
        )
        self.model = {f"key:{i}": self.text() for i in range(keys)}
        self.kept = dict(self.model)
        deadline = time.monotonic() + 20
        while True:
            try:
                with_client(self.port, lambda one: one.ask("PING"))
                break
            except OSError:
                if time.monotonic() > deadline or self.server.poll() is not None:
                    raise
                time.sleep(0.02)
        with_client(self.port, lambda one: one.many([("SET", key, text) for key, text in self.model.items()]))

    def text(self) -> str:
        return f"{self.random.getrandbits(400):x}"

    def verify(self) -> str:
        keys = list(self.model)
        found = with_client(self.port, lambda one: one.many([("GET", key) for key in keys]))
        for key, text in zip(keys, found, strict=True):
            if text != self.model[key]:
                return f"FAIL {key} is {str(text)[:20]}, not {self.model[key][:20]}"
        size = with_client(self.port, lambda one: one.ask("DBSIZE"))
        return "PASS" if size == len(keys) else f"FAIL {size} keys, not {len(keys)}"

    def write(self, count: int) -> str:
        chosen = [self.random.choice(list(self.model)) for _ in range(count)]
        changed = {key: self.text() for key in chosen}
        self.model.update(changed)
        with_client(self.port, lambda one: one.many([("SET", key, text) for key, text in changed.items()]))
        return "OK"

    def set(self, key: str, text: str) -> str:
        self.model[key] = text
        return str(with_client(self.port, lambda one: one.ask("SET", key, text)))

    def answer(self, question: str) -> str:
        match question.split():
            case ["verify"]:
                return self.verify()
            case ["set", key, text]:
                return self.set(key, text)
            case ["get", key]:
                return with_client(self.port, lambda one: one.ask("GET", key)) or "NONE"
            case ["write", count]:
                return self.write(int(count))
            case ["save"]:
                self.kept = dict(self.model)
                return "OK"
            case ["back"]:
                self.model = dict(self.kept)
                return "OK"
            case ["info", field]:
                lines = with_client(self.port, lambda one: one.ask("INFO")).splitlines()
                return next((line.split(":", 1)[1] for line in lines if line.startswith(f"{field}:")), "NONE")
            case ["collect"]:
                self.server.wait()
                return "OK"
            case ["port"]:
                return str(self.port)
        return f"FAIL unknown question {question}"


def with_client(port: int, what: Any) -> Any:
    client = Resp(port)
    try:
        return what(client)
    finally:
        client.close()


def main() -> None:
    if not shutil.which("redis-server"):
        print("SKIP redis-server is not installed", flush=True)
        sys.exit(77)
    driver = Driver(Path(sys.argv[1]), int(sys.argv[2]))
    try:
        print(f"READY {driver.server.pid}", flush=True)
        for line in sys.stdin:
            try:
                print(driver.answer(line.strip()), flush=True)
            except (OSError, RuntimeError) as error:
                print(f"FAIL {type(error).__name__}: {error}", flush=True)
    finally:
        driver.server.kill()
        driver.server.wait()


if __name__ == "__main__":
    main()
