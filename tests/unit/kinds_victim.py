"""A program with one of everything, for test_kinds_live: READY, then spoils what it has at "spoil", ends at end of input."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import struct
import sys
import threading
import time

libc = ctypes.CDLL(None)
folder = sys.argv[1]
reader, writer = os.pipe()
os.write(writer, b"in the pipe")
event = libc.eventfd(26, 1)
relative, absolute = libc.timerfd_create(1, 0), libc.timerfd_create(0, 0)
libc.timerfd_settime(relative, 0, struct.pack("<4q", 2, 3, 1000, 5), None)
libc.timerfd_settime(absolute, 1, struct.pack("<4q", 0, 0, 4_000_000_000, 0), None)
poll = select.epoll()
poll.register(reader, select.EPOLLIN)
left, right = socket.socketpair()
left.send(b"queued")
first, second = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
first.send(b"one")
first.send(b"two")
signals = libc.signalfd(-1, struct.pack("<Q", 1 << 9), 0)
memory = os.memfd_create("contents", os.MFD_ALLOW_SEALING)
os.write(memory, b"x" * 5000)
log = os.open(f"{folder}/log", os.O_RDWR | os.O_CREAT | os.O_APPEND)
os.write(log, b"0123456789")
null, directory = os.open("/dev/null", os.O_RDWR), os.open(folder, os.O_RDONLY)
server = socket.create_server(("127.0.0.1", 0), backlog=5)
client = socket.create_connection(server.getsockname())
served, _ = server.accept()
client.send(b"12345")
twin = os.dup(reader)
signal.signal(signal.SIGUSR1, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 1000)
threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
print("READY", flush=True)
for line in sys.stdin:
    if line.strip() == "spoil":
        os.read(reader, 3)
        os.read(event, 8)
        poll.unregister(reader)
        left.send(b"and more")
        os.ftruncate(memory, 10)
        os.lseek(log, 2, os.SEEK_SET)
        os.close(null)
        served.recv(5)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        os.umask(0o7)
        os.chdir("/")
    print("DONE", flush=True)
