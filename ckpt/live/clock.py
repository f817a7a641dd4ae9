"""The machine's clocks, and what programs see of them: CLOCK_MONOTONIC and CLOCK_BOOTTIME may be others in a time namespace.

A generation says what its program's clocks were at the freeze (Snapshot.features, "clocks"); a restore makes a time namespace in which
they go on from there. Instants of ckpt's own are the machine's, in whatever namespace ckpt itself stands (native/src/clock.c).

 1. A task whose children are to have other clocks than itself (unshare --time without an exec since) is refused: nothing outside
    shows its own ones, and one restored process has one view.
 2. So is a tree whose members see different clocks.
 3. An offset of CLOCK_BOOTTIME is a whole number of ticks, rounded up (a restore seems to take up to 10 ms more): so the start time of
    a process, which /proc shows in ticks and as its reader sees it, is the same number for every ckpt.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import NamedTuple

from ckpt.model import State
from ckpt.procfs import parse_offsets
from native._native import ffi, lib

TICK = 10_000_000
OWN, CHILDREN, OFFSETS = "ns/time", "ns/time_for_children", "timens_offsets"  #: files of /proc/PID; absent without CONFIG_TIME_NS


class View(StrEnum):
    """What CLOCK_MONOTONIC and CLOCK_BOOTTIME show to what is restored."""

    CONTINUE = "continue"  #: they go on from the snapshot, where a time namespace can be had
    HOST = "host"  #: what they show to ckpt


class Clocks(NamedTuple):
    """CLOCK_MONOTONIC and CLOCK_BOOTTIME, or what is added to them; ns."""

    monotonic: int
    boottime: int

    def plus(self, other: Clocks) -> Clocks:
        return Clocks(self.monotonic + other.monotonic, self.boottime + other.boottime)


@cache
def own() -> Clocks:
    """What is added to the machine's for us."""
    raw = ffi.new("struct ckpt_clocks *")
    lib.ckpt_clocks_own(raw)
    return Clocks(int(raw.monotonic), int(raw.boottime))


def now() -> Clocks:
    """The machine's."""
    raw = ffi.new("struct ckpt_clocks *")
    lib.ckpt_clocks_now(raw)
    return Clocks(int(raw.monotonic), int(raw.boottime))


def now_ns() -> int:
    """The machine's CLOCK_MONOTONIC."""
    return time.monotonic_ns() - own().monotonic


def ticks(shown: int) -> int:
    """Field 22 of /proc/PID/stat as who is in no time namespace reads it."""
    return shown - own().boottime // TICK


# ---- what a program sees ----


def look(pid: int) -> dict[str, bytes]:
    """The files that tell it; none where the kernel has no time namespaces. Offsets are read only where they are not our own.
    Raises FileNotFoundError or ProcessLookupError when it has ended."""
    if _namespace() is None:
        return {}
    found = {name: os.fsencode(os.readlink(f"/proc/{pid}/{name}")) for name in (OWN, CHILDREN)}
    if found[OWN] != _namespace():
        found[OFFSETS] = Path(f"/proc/{pid}/{OFFSETS}").read_bytes()
    return found


@cache
def _namespace() -> bytes | None:
    """The one that we are in."""
    try:
        return os.fsencode(os.readlink(f"/proc/self/{OWN}"))
    except FileNotFoundError:
        return None


def offsets(files: Mapping[str, bytes]) -> Clocks:
    """What is added to the machine's for a task, by what `look` found."""
    return Clocks(*parse_offsets(files[OFFSETS])) if OFFSETS in files else own()


def borne(pid: int) -> Clocks | None:
    """What is added to the machine's for whom a process bears; None without time namespaces. One file: a newborn's /proc is slow."""
    try:
        return Clocks(*parse_offsets(Path(f"/proc/{pid}/{OFFSETS}").read_bytes()))
    except FileNotFoundError:
        return None


def clocks_of(pid: int) -> Clocks:
    """What a living process sees now."""
    return now().plus(offsets(look(pid)))


def strange(files: Mapping[str, bytes], root: Mapping[str, bytes], root_pid: int) -> str | None:
    """Why a task cannot be captured beside the root of its tree, if so. Of one that has ended since (no files) nothing is known."""
    if OWN not in files:
        return None
    if files.get(OWN) != files.get(CHILDREN):
        return "its children are to have other clocks than itself (a time namespace): not supported"
    if files.get(OWN) != root.get(OWN):
        return f"is in another time namespace than task {root_pid}: not supported"
    return None


def at(instant: int, offsets: Clocks) -> dict[str, int]:
    """For Snapshot.features: what a program's clocks showed when the machine's CLOCK_MONOTONIC was `instant`."""
    here = now()
    return Clocks(instant, here.boottime - here.monotonic + instant).plus(offsets)._asdict()


def clocks_then(features: State) -> Clocks | None:
    """What a generation says of its program's clocks; None in one of an earlier ckpt."""
    clocks = features.get("clocks")
    return Clocks(int(clocks["monotonic"]), int(clocks["boottime"])) if clocks else None


def continuing(then: Clocks) -> Clocks:
    """What must be added to the machine's, so that a program sees its clocks go on from `then`, now."""
    here = now()
    added = Clocks(then.monotonic - here.monotonic, then.boottime - here.boottime)
    rest = -added.boottime % TICK  # of both: how far they are apart shows, too
    return added.plus(Clocks(rest, rest))
