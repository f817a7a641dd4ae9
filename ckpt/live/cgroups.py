"""Where control groups lie in this machine's file system, so that a restored process can join those of then."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ckpt.procfs.cgroup import parse_cgroup

V2 = ""  #: the name of the unified hierarchy among the paths


@dataclass(frozen=True, slots=True)
class Joined:
    files: tuple[str, ...]  #: cgroup.procs of each group to be entered
    missing: tuple[str, ...]  #: in words


def join(wanted: Mapping[str, str], mounts: Mapping[str, tuple[str, str]], here: Mapping[str, str]) -> Joined:
    """`mounts`: hierarchy -> (its path that is mounted, where); `here`: the groups that a newborn is in (ours)."""
    files, missing = [], []
    for hierarchy, path in sorted(wanted.items()):
        if here.get(hierarchy) == path:
            continue
        procs = _procs(mounts.get(hierarchy), path)
        title = f"control group {path}" + (f" of {hierarchy}" if hierarchy else "")
        if procs is None or not Path(procs).exists():
            missing.append(f"{title} is gone: it stays in {here.get(hierarchy, '/')}")
        elif not os.access(procs, os.W_OK):
            missing.append(f"{title} may not be entered: it stays in {here.get(hierarchy, '/')}")
        elif is_frozen(Path(procs).parent):
            missing.append(f"{title} is frozen: it stays in {here.get(hierarchy, '/')}")
        else:
            files.append(procs)
    return Joined(tuple(files), tuple(missing))


def folder(mount: tuple[str, str] | None, path: str) -> Path | None:
    """Where a group lies, if what is mounted shows it."""
    if mount is None:
        return None
    root, where = mount
    inside = os.path.relpath(path, root)
    return None if inside.startswith("..") else Path(os.path.normpath(f"{where}/{inside}"))


def _procs(mount: tuple[str, str] | None, path: str) -> str | None:
    found = folder(mount, path)
    return None if found is None else str(found / "cgroup.procs")


def is_frozen(group: Path) -> bool:
    """Whether whoever is in it stands still, or soon will: by itself or by one above it, by v2 or v1."""
    for name, signs in (("cgroup.events", ("frozen 1",)), ("freezer.state", ("FROZEN", "FREEZING"))):
        try:
            if set(signs) & set((group / name).read_text().split("\n")):
                return True
        except OSError:
            continue
    return (group / "cgroup.freeze").exists() and (group / "cgroup.freeze").read_text().strip() == "1"


def mounted() -> dict[str, tuple[str, str]]:
    """Hierarchy (controllers as /proc/PID/cgroup names them, or V2) -> (the path in it that is mounted, where)."""
    found: dict[str, tuple[str, str]] = {}
    names = {frozenset(key.split(",")): key for key in ours()}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        root, where = before.split()[3:5]
        kind, _source, options = after.split()[:3]
        if kind == "cgroup2":
            found.setdefault(V2, (root, where))
        elif kind == "cgroup":
            key = next((key for parts, key in names.items() if key and parts <= set(options.split(","))), None)
            if key is not None:
                found.setdefault(key, (root, where))
    return found


def ours() -> dict[str, str]:
    return {",".join(entry.controllers): entry.path for entry in parse_cgroup(Path("/proc/self/cgroup").read_bytes())}
