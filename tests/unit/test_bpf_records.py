"""A copy of a thread's record that holds words of two of its states is told by its sum."""

from __future__ import annotations

import random
import struct
from itertools import combinations

import pytest

from bpf.syscalls import _CALL, _WEIGHT, _whole
from ckpt.syscalls.names import nr

NOW = 4_000_123_456_789
WORDS = _CALL.size // 8


def record(call: int, arg: int, last: int, result: int, count: int, ns: int = NOW) -> tuple[int, ...]:
    """The words of one state, its sum first: as src/syscalls.bpf.c makes it."""
    words = struct.unpack(f"<{WORDS - 1}Q", _CALL.pack(0, call, ns, arg, 0, 0, 0, 0, 0, last, result, max(0, ns - 250), count, 4121, 0)[8:])
    return (sum(word * _WEIGHT ** (len(words) - 1 - place) for place, word in enumerate(words)) % 2**64, *words)


def packed(words: tuple[int, ...]) -> bytes:
    return struct.pack(f"<{WORDS}Q", *words)


GETPGID, UMASK = nr("getpgid"), nr("umask")
STATES = {
    "new": record(-1, 0, -1, 0, 0, 0),
    "in getpgid": record(GETPGID, 0, UMASK, 0o22, 70),
    "after getpgid": record(-1, 0, GETPGID, 4121, 71, NOW + 300),
    "in umask": record(UMASK, 0o22, GETPGID, 4121, 71, NOW + 350),
    "in getpgid again": record(GETPGID, 0, UMASK, 0o22, 72, NOW + 700),
    "by one": record(GETPGID + 1, 1, UMASK + 1, 0o23, 71, NOW + 1),
}


@pytest.mark.parametrize("state", STATES.values(), ids=STATES.keys())
def test_one_state_is_whole(state: tuple[int, ...]) -> None:
    assert _whole(packed(state))


@pytest.mark.parametrize(("one", "other"), list(combinations(STATES, 2)))
def test_no_mixture_of_two_is_whole(one: str, other: str) -> None:
    """Each choice of words that differ, the sum among them; but for the two states themselves."""
    first, second = STATES[one], STATES[other]
    differ = [place for place in range(WORDS) if first[place] != second[place]]
    assert len(differ) >= 4
    for choice in range(1, 2 ** len(differ) - 1):
        mixture = list(first)
        for bit, place in enumerate(differ):
            if choice >> bit & 1:
                mixture[place] = second[place]
        assert not _whole(packed(tuple(mixture))), (one, other, differ, choice)


def test_small_differences_do_not_cancel_out() -> None:
    """By small weights (1, 3, 5...) they could: 5 more in one word makes up for 3 less in another."""
    chance = random.Random(1)
    state = STATES["in getpgid"]
    for _ in range(20_000):
        torn = list(state)
        for place in chance.sample(range(1, WORDS), chance.randint(1, 4)):
            torn[place] = (torn[place] + chance.choice((-1, 1)) * chance.randint(1, 15)) % 2**64
        assert not _whole(packed(tuple(torn)))
