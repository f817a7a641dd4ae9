"""A folder for each kernel: headers, offsets and compiled programs. Everything in it can be made again; removing it is safe.

What lies there is loaded into the kernel with our rights, so the folder must be ours alone: root's is /var/cache/ckpt, whatever HOME says.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from bpf.errors import BpfError


def base() -> Path:
    """`$CKPT_CACHE_DIR`, else `/var/cache/ckpt` for root, else `$XDG_CACHE_HOME/ckpt` or `~/.cache/ckpt`."""
    if named := os.environ.get("CKPT_CACHE_DIR"):
        return Path(named)
    if os.geteuid() == 0:
        return Path("/var/cache/ckpt")
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if cache.startswith("/") else Path.home() / ".cache") / "ckpt"


def kernel() -> str:
    """This kernel and no other: its release, and a digest of its build (offsets differ between builds of one release)."""
    host = os.uname()
    notes = Path("/sys/kernel/notes")
    build = notes.read_bytes() if notes.exists() else b""
    return f"{host.release}-{hashlib.blake2b(host.version.encode() + build, digest_size=6).hexdigest()}"


def place() -> Path:
    """The folder of this kernel, which need not be there. Raises BpfError where somebody else could write into it."""
    path = base() / "bpf" / kernel()
    for one in (path, path.parent):
        with suppress(FileNotFoundError):
            status = one.stat()
            if status.st_uid != os.geteuid() or status.st_mode & 0o022:
                raise BpfError("cache", f"{one}: others may write to it: remove it, or set CKPT_CACHE_DIR to a folder of yours")
    return path


def folder() -> Path:
    """The same, made where it is not there."""
    path = base() / "bpf" / kernel()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return place()
    except OSError as error:
        raise BpfError("cache", f"{path}: {error.strerror}: set CKPT_CACHE_DIR to a folder of yours") from error


def write(path: Path, content: bytes) -> None:
    """All of it or nothing: another ckpt may be reading."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    Path(name).replace(path)
