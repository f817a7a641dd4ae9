"""Headers, offsets, compiling once, and what is said where something is missing."""

from __future__ import annotations

import importlib.util
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

import bpf
from bpf import btf, cache, headers, images, program
from bpf.errors import BpfError
from ckpt.live import doctor

ROOT = Path(__file__).resolve().parents[2]
NAME = "lifecycle"


# ---- BTF ----


def type_info(*types: bytes, strings: bytes) -> bytes:
    body = b"".join(types)
    return struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(body), len(body), len(strings)) + body + strings


def test_members_of_anonymous_structs_are_found(tmp_path: Path) -> None:
    """struct outer { int a; union { struct { int b; int c; }; long d; }; int e : 3; }, with a function of the same name before it."""
    strings = b"\0int\0outer\0a\0b\0c\0d\0e\0"
    at = {name: strings.index(b"\0" + name.encode() + b"\0") + 1 for name in ("int", "outer", "a", "b", "c", "d", "e")}
    integer = struct.pack("<IIII", at["int"], 1 << 24, 4, 32)
    function = struct.pack("<III", at["outer"], 12 << 24, 0)
    inner = struct.pack("<III", 0, 4 << 24 | 2, 8) + struct.pack("<IIIIII", at["b"], 1, 0, at["c"], 1, 32)
    union = struct.pack("<III", 0, 5 << 24 | 2, 8) + struct.pack("<IIIIII", 0, 3, 0, at["d"], 1, 0)
    fields = struct.pack("<IIIIIIIII", at["a"], 1, 0, 0, 4, 64, at["e"], 1, 3 << 24 | 128)
    outer = struct.pack("<III", at["outer"], 1 << 31 | 4 << 24 | 3, 24) + fields
    path = tmp_path / "btf"
    path.write_bytes(type_info(integer, function, inner, union, outer, strings=strings))
    wanted = [f"outer.{name}" for name in "abcde"]
    assert btf.offsets(wanted, path) == {"outer.a": 0, "outer.b": 8, "outer.c": 12, "outer.d": 8, "outer.e": 16}
    with pytest.raises(BpfError, match=r"no outer\.f"):
        btf.offsets(["outer.f"], path)


def test_a_kernel_without_type_information(tmp_path: Path) -> None:
    with pytest.raises(BpfError, match="CONFIG_DEBUG_INFO_BTF") as caught:
        btf.offsets(["task_struct.pid"], tmp_path / "none")
    assert caught.value.kind == "no-btf"
    (tmp_path / "bad").write_bytes(bytes(100))
    with pytest.raises(BpfError, match="not type information"):
        btf.offsets(["task_struct.pid"], tmp_path / "bad")


# ---- headers, cache ----


def test_version_code() -> None:
    known = {"6.18.44-cloud": 0x06122C, "6.1.0-35-amd64": 0x060100, "5.15.300": 0x050FFF, "6.7": 0x060700}
    assert {release: headers.version_code(release) for release in known} == known


def test_headers_are_made_once_and_mended(tmp_path: Path) -> None:
    root = headers.tree(tmp_path, "6.18.44")
    version = root / "include/linux/version.h"
    before = version.stat().st_mtime_ns
    assert "LINUX_VERSION_CODE 397868" in version.read_text()
    headers.tree(tmp_path, "6.18.44")
    assert version.stat().st_mtime_ns == before
    version.write_text("")
    headers.tree(tmp_path, "6.18.44")
    assert version.read_text()


def test_a_cache_that_others_may_write_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKPT_CACHE_DIR", str(tmp_path))
    assert not cache.place().exists()
    made = cache.folder()
    assert made.stat().st_mode & 0o777 == 0o700
    made.parent.chmod(0o777)
    with pytest.raises(BpfError, match="others may write") as caught:
        cache.folder()
    assert caught.value.kind == "cache"
    monkeypatch.setenv("CKPT_CACHE_DIR", "/proc/nowhere")
    with pytest.raises(BpfError, match="CKPT_CACHE_DIR"):
        cache.folder()


def test_the_cache_of_root_is_not_in_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CKPT_CACHE_DIR")
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert cache.base() == Path("/var/cache/ckpt")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch")
    assert cache.base() == Path("/scratch/ckpt")


# ---- compiling once ----


@pytest.mark.usefixtures("usable")
def test_compiled_without_kernel_headers_and_then_loaded_without_bcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKPT_CACHE_DIR", str(tmp_path))
    assert not images.compiled(NAME)
    made = images.image(NAME)
    assert {spec.name for spec in made.maps} == {"tree", "changes", "untold"}
    assert images.compiled(NAME)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # bcc has gone
    took = []
    for _ in range(5):
        start = time.perf_counter()
        assert images.image(NAME) == made
        took.append(time.perf_counter() - start)
    assert min(took) < 0.05, "it was compiled again"
    with bpf.Filter() as tree:
        assert tree.pids() == set()
    (file,) = cache.folder().glob(f"{NAME}-*.json")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(BpfError, match="apt-get install python3-bpfcc") as caught:
        images.image(NAME)
    assert caught.value.kind == "no-bcc"
    monkeypatch.undo()
    monkeypatch.setenv("CKPT_CACHE_DIR", str(tmp_path))
    assert images.image(NAME) == made, "half a file is no image: it is compiled again"


@pytest.mark.usefixtures("usable")
def test_what_clang_says_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "SOURCES", tmp_path)
    (tmp_path / "tree.h").write_text("\n")
    (tmp_path / "broken.bpf.c").write_text("\nint f(void *ctx) { return nowhere; }\n")
    with pytest.raises(BpfError) as caught:
        images.image("broken")
    assert caught.value.kind == "compile"
    assert "broken.bpf.c:2" in str(caught.value)
    assert "nowhere" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("usable")
def test_what_the_verifier_says_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "SOURCES", tmp_path)
    (tmp_path / "tree.h").write_text("\n")
    (tmp_path / "wild.bpf.c").write_text("int f(struct bpf_raw_tracepoint_args *ctx) { return *(int *)ctx->args[0]; }\n")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(BpfError) as caught:
        program.Program("wild", {"f": "sys_enter"})
    assert (caught.value.kind, "\n" in str(caught.value)) == ("load", False)
    assert "invalid mem access" in str(caught.value)
    monkeypatch.undo()
    with pytest.raises(BpfError, match="tracepoint no_such_point"):
        program.Program(NAME, {"ended": "no_such_point"})
    assert len(os.listdir("/proc/self/fd")) == before


def test_relocation() -> None:
    """Places become descriptors in two-word loads of maps alone; a two-word load of a number is left alone, even one that looks like it."""
    load_map = bytes.fromhex("1811000001000000") + bytes(8)
    load_number = bytes.fromhex("1801000001000000") + bytes.fromhex("1811000001000000")
    other = bytes.fromhex("b700000001000000")
    code = load_number + load_map + other
    assert program.relocated(code, [70, 71]) == load_number + bytes.fromhex("1811000047000000") + bytes(8) + other


# ---- rights ----


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: gives its rights up")
def test_without_rights_it_is_said_in_one_line(tmp_path: Path) -> None:
    script = "import bpf; error = bpf.missing(); print(error.kind, error)"
    tmp_path.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT), "CKPT_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True, text=True, user=65534, group=65534, check=False,
    )  # fmt: skip
    if "Permission denied" in done.stderr or "ModuleNotFound" in done.stderr:
        pytest.skip("this checkout cannot be read by another user")
    assert done.stdout.startswith("no-rights no right to load BPF programs: run as root"), done.stdout + done.stderr


# ---- doctor ----


def finding(monkeypatch: pytest.MonkeyPatch, error: BpfError | None) -> doctor.Finding:
    if error is not None:
        monkeypatch.setattr("bpf.missing", lambda: error)
    return next(one for one in doctor.examine()[1] if one.name == "eBPF (BCC)")


def test_doctor_says_what_is_missing_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    found = finding(monkeypatch, BpfError("no-bcc", "the module bcc is not installed: apt-get install python3-bpfcc"))
    assert (found.works, found.detail, found.remedy) == (False, "the module bcc is not installed", "apt-get install python3-bpfcc")
    assert "who wrote a page" in found.follows


@pytest.mark.usefixtures("usable")
def test_doctor_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKPT_CACHE_DIR", str(tmp_path / "none"))
    found = finding(monkeypatch, None)
    assert (found.works, found.detail) == (True, "works; programs are compiled at the first use")
    assert not (tmp_path / "none").exists()
