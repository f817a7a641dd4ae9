"""The multicast groups of a UDP socket, with the filters of sources: part of its state (`groups`), and the calls that join and leave.

An interface is known by its name, for numbers are given anew; `index` is its number of now. An IPv4 membership can be left by the
number, by the interface's address, or by neither, whichever way it was joined; so it is joined with both.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from ckpt.kinds.base import Unsupported, call
from ckpt.kinds.fd.sockopts import IPPROTO_IP, IPPROTO_IPV6
from ckpt.model import RemoteArg, RemoteCall
from ckpt.syscalls.names import nr

_ROW = struct.Struct("<iiII16s16s4sI")  #: native/src/fdgroups.c
_SOURCES, _ADDRESS = 64, 16
_EXCLUDE = 0
_IP_ADD_MEMBERSHIP, _IP_DROP_MEMBERSHIP, _MCAST_JOIN_GROUP, _MCAST_LEAVE_GROUP, _MCAST_MSFILTER = 35, 36, 42, 45, 48
_LOOPBACK = "lo"

Group = Mapping[str, Any]


def parse(answer: bytes) -> list[dict[str, Any]]:
    """The answer to Work.GROUPS."""
    found, at = [], 0
    while at < len(answer):
        family, index, mode, count, group, device, address, _pad = _ROW.unpack_from(answer, at)
        at += _ROW.size
        size = 4 if family == socket.AF_INET else 16
        name = socket.inet_ntop(family, group[:size])
        if count > _SOURCES:
            raise Unsupported(f"udp socket in multicast group {name} with {count} sources: not supported (at most {_SOURCES})")
        sources = [socket.inet_ntop(family, answer[at + n * _ADDRESS :][:size]) for n in range(count)]
        at += count * _ADDRESS
        found.append(
            {
                "family": family,
                "group": name,
                "device": device.rstrip(b"\0").decode(errors="surrogateescape"),
                "index": index,
                "address": socket.inet_ntoa(address),
                "exclude": mode == _EXCLUDE,
                "sources": sorted(sources),
            }
        )
    return sorted(found, key=_key)


def change(fd: int | RemoteArg, now: Sequence[Group], wanted: Sequence[Group]) -> list[RemoteCall]:
    here, there = ({_key(group): group for group in groups} for groups in (now, wanted))
    calls = [_membership(fd, here[key], join=False) for key in sorted(here.keys() - there.keys())]
    for key in sorted(there):
        if key not in here:
            calls.append(_membership(fd, there[key], join=True))
        if _filter(here.get(key)) != _filter(there[key]):
            calls.append(_filtered(fd, there[key]))
    return calls


def in_own_network(groups: Sequence[Group]) -> list[Group]:
    """Those that can be joined where the loopback is the only interface."""
    return [group for group in groups if group["device"] == _LOOPBACK]


def same_groups(here: Sequence[Group], there: Sequence[Group]) -> bool:
    """Whatever numbers and addresses the interfaces have."""
    return {_key(group): _filter(group) for group in here} == {_key(group): _filter(group) for group in there}


def _key(group: Group) -> tuple[int, str, str]:
    return group["family"], group["group"], group["device"]


def _filter(group: Group | None) -> tuple[bool, list[str]]:
    return (group["exclude"], group["sources"]) if group else (True, [])


def _membership(fd: int | RemoteArg, group: Group, *, join: bool) -> RemoteCall:
    note = f"{'join' if join else 'leave'} multicast group {group['group']} on {group['device']}"
    if group["family"] == socket.AF_INET:
        address = socket.inet_aton(group["address"]) if join else bytes(4)
        request = socket.inet_aton(group["group"]) + address + struct.pack("<i", group["index"])
        option = _IP_ADD_MEMBERSHIP if join else _IP_DROP_MEMBERSHIP
        return call(nr("setsockopt"), fd, IPPROTO_IP, option, request, len(request), note=note)
    request = struct.pack("<I4x", group["index"]) + _sockaddr(group["family"], group["group"])
    option = _MCAST_JOIN_GROUP if join else _MCAST_LEAVE_GROUP
    return call(nr("setsockopt"), fd, IPPROTO_IPV6, option, request, len(request), note=note)


def _filtered(fd: int | RemoteArg, group: Group) -> RemoteCall:
    family, sources = group["family"], group["sources"]
    request = struct.pack("<I4x", group["index"]) + _sockaddr(family, group["group"])
    request += struct.pack("<II", not group["exclude"], len(sources)) + b"".join(_sockaddr(family, source) for source in sources)
    level = IPPROTO_IP if family == socket.AF_INET else IPPROTO_IPV6
    note = f"{'not ' if group['exclude'] else ''}from {', '.join(sources) or 'nobody'} in group {group['group']}"
    return call(nr("setsockopt"), fd, level, _MCAST_MSFILTER, request, len(request), note=note)


def _sockaddr(family: int, address: str) -> bytes:
    """struct sockaddr_storage."""
    raw = socket.inet_pton(family, address)
    return (struct.pack("<H", family) + bytes(2 if family == socket.AF_INET else 6) + raw).ljust(128, b"\0")
